"""The command `bench distill`: rows in the one form, written where --out says; wrong words are errors."""

import json

import pytest

from ml_core.__main__ import bench_names, main
from ml_core.evals.bench_distill import merged

QUICK = ["bench", "distill", "--quick", "--tasks", "vit96x6>vit32x3", "--seeds", "2", "--replicates", "20", "--json"]


def test_bench_distill_writes_cells_and_summaries(tmp_path, capsys):
    assert "distill" in bench_names()
    out = tmp_path / "distill.json"
    arguments = [*QUICK, "--systems", "kd,fitnets,dfad,no_floor", "--work", str(tmp_path / "w"), "--out", str(out)]
    assert main(arguments) == 0
    body = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert body == json.loads(out.read_text())
    assert body["meta"]["tuned"]["tuned_on"] == ""
    assert body["meta"]["device"] == "cpu"
    cells = [row for row in body["rows"] if row["seed"] is not None]
    assert {(row["system"], row["seed"]) for row in cells} == {
        (system, seed) for system in ("kd", "fitnets", "dfad", "no_floor") for seed in (0, 1)
    }
    summaries = {(row["system"], row["metric"]) for row in body["rows"] if row["seed"] is None}
    assert {
        ("dfad", "accuracy minus kd"),
        ("dfad", "accuracy minus fitnets"),
        ("no_floor", "accuracy minus dfad"),
        ("dfad", "accuracy retention"),
        ("teacher", "accuracy"),
    } <= summaries


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "nix"], "nix"),
        (["--systems", "nix"], "nix"),
        (["--seeds", "0"], "seeds"),
        (["--worker", "--out", "x.json"], "worker"),
    ],
)
def test_wrong_words_are_errors_that_name_what_there_is(tmp_path, capsys, words, said):
    assert main([*QUICK, "--work", str(tmp_path), *words]) == 2
    assert said in json.loads(capsys.readouterr().out)["message"]


def test_merging_keeps_other_cases_and_the_runs_that_they_are_of():
    def body(date, *cases):
        return {"meta": {"date": date}, "rows": [{"case": case, "run": date} for case in cases]}

    both = merged(body("1", "a", "b"), new=body("2", "b"))
    assert [(row["case"], row["run"]) for row in both["rows"]] == [("a", "1"), ("b", "2")]
    assert both["meta"] == {"date": "2", "earlier": [{"date": "1"}]}
    third = merged(both, new=body("3", "c"))
    assert [about["date"] for about in third["meta"]["earlier"]] == ["2", "1"]
    assert merged(third, new=body("4", "a", "b", "c"))["meta"]["earlier"] == []
