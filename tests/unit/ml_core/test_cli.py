"""The command line: help costs nothing, --json is one object last on stdout, failures have a status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml_core.__main__ import bench_names, main

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments, code=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-m", "ml_core", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert answer.returncode == code, answer.stderr
    return answer


def test_help_lists_the_six_commands_and_imports_no_torch():
    code = (
        "import sys\nfrom ml_core.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(name in answer.stdout for name in ("train", "distill", "quantize", "eval", "bench", "describe"))


@pytest.mark.parametrize("command", ["train", "distill", "quantize", "describe"])
def test_every_command_has_json(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_describe_prints_one_json_object_last(tmp_path, capsys):
    from testkit.artifacts import artifact_make

    digest = artifact_make(tmp_path / "a", name="small")
    assert main(["describe", str(tmp_path / "a"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["digest"], answer["name"], answer["kind"]) == (digest, "small", "fraud")


def test_an_error_of_the_engine_is_said_in_one_object_with_status_2(tmp_path, capsys):
    assert main(["describe", str(tmp_path), "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"] == "artifact_invalid"
    assert "manifest.json" in printed.err


def test_train_writes_failed_and_returns_nonzero(tmp_path, capsys):
    (tmp_path / "spec.json").write_text('{"kind": "fraud", "recipe": "nix"}')
    assert main(["train", str(tmp_path), "--json"]) == 1
    assert "does not exist" in json.loads(capsys.readouterr().out)["error"]


def test_distill_refuses_an_unknown_recipe_and_a_bad_parameter(tmp_path, capsys):
    assert main(["distill", "--recipe", "nix", "--out", str(tmp_path), "--json"]) == 2
    assert "fraud_dfad_small" in json.loads(capsys.readouterr().out)["message"]
    assert main(["distill", "--recipe", "fraud_dfad_small", "--out", str(tmp_path), "epochs", "--json"]) == 2
    assert "name=value" in json.loads(capsys.readouterr().out)["message"]


def test_unknown_arguments_are_errors(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["describe", str(tmp_path), "--jsn"])
    assert "--jsn" in capsys.readouterr().err


def test_the_benchmarks_are_found_by_their_names():
    assert {"dpe", "quant"} <= set(bench_names())


def test_bench_gives_rows_in_the_one_form():
    answer = run("bench", "dpe", "--device", "cpu", "--tokens", "16", "--seconds", "0.01", "--json")
    result = json.loads(answer.stdout.splitlines()[-1])
    assert {"name", "date", "git", "machine", "versions", "command"} <= set(result["meta"])
    assert {row["system"] for row in result["rows"]} == {"naive", "sdpa", "blockwise"}
    assert all(set(row) == {"case", "system", "metric", "value", "unit", "low", "high", "n"} for row in result["rows"])
    assert all(row["low"] <= row["value"] <= row["high"] for row in result["rows"])


def test_a_benchmark_whose_systems_disagree_reports_nothing(monkeypatch, capsys):
    from ml_core.evals import bench_dpe

    wrong = lambda *args, backend, **kw: args[0] * (2.0 if backend == "sdpa" else 1.0)  # noqa: E731
    monkeypatch.setattr(bench_dpe, "dpe_attention", wrong)
    assert main(["bench", "dpe", "--device", "cpu", "--tokens", "16", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "bench_red"
