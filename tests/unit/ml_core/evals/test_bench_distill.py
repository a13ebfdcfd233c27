"""The command `bench distill`: rows in the one form, written where --out says; wrong words are errors."""

import json

import pytest

from ml_core.__main__ import bench_names, main

QUICK = ["bench", "distill", "--quick", "--tasks", "vit128x6>vit32x3", "--seeds", "2", "--replicates", "20", "--json"]


def test_bench_distill_writes_cells_and_summaries(tmp_path, capsys):
    assert "distill" in bench_names()
    out = tmp_path / "distill.json"
    arguments = [*QUICK, "--systems", "kd,fitnets,dfad,no_floor", "--work", str(tmp_path / "w"), "--out", str(out)]
    assert main(arguments) == 0
    body = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert body == json.loads(out.read_text())
    assert body["meta"]["tuned"]["tuned_on"] == ""
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
    ("words", "said"), [(["--tasks", "nix"], "nix"), (["--systems", "nix"], "nix"), (["--seeds", "0"], "seeds")]
)
def test_wrong_words_are_errors_that_name_what_there_is(tmp_path, capsys, words, said):
    assert main([*QUICK, "--work", str(tmp_path), *words]) == 2
    assert said in json.loads(capsys.readouterr().out)["message"]
