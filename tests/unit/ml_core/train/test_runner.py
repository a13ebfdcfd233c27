"""The runner: whatever happens, the last word of events.jsonl is done or failed, and the exit status says which."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ml_core.contracts import ModelKind, RunSpec
from ml_core.errors import InputError, RunError
from ml_core.events import read
from ml_core.train.outcome import RunOutcome
from ml_core.train.runner import run_folder, spec_complete, spec_read, spec_write, summary

ROOT = Path(__file__).resolve().parents[4]
BASE = RunSpec(kind=ModelKind.FRAUD, recipe="r", params={"epochs": 3, "rate": 0.1})


def defaults(name):
    if name != "r":
        raise RunError(f"recipe: {name!r} does not exist")
    return BASE


def folder_with(tmp_path, **given):
    spec_write(tmp_path, spec=RunSpec(**{"kind": ModelKind.FRAUD, "recipe": "r", **given}))
    return tmp_path


def test_a_run_that_ends_well_says_done_and_returns_zero(tmp_path):
    seen = []

    def run(spec, folder, log):
        seen.append((spec, folder))
        return RunOutcome(digest="d", artifact=folder / "artifact", candidate={"ap": 0.7}, champion={"ap": 0.6})

    assert run_folder(folder_with(tmp_path, params={"epochs": 5}), defaults=defaults, run=run) == 0
    assert seen[0][0].params == {"epochs": 5, "rate": 0.1}
    assert summary(tmp_path)["kind"] == "done"
    assert summary(tmp_path)["metrics"] == {"candidate": {"ap": 0.7}, "champion": {"ap": 0.6}}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RunError("no fraud in the window"), "no fraud in the window"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError"),
    ],
)
def test_a_run_that_fails_says_why_and_returns_one(tmp_path, error, told):
    def run(spec, folder, log):
        raise error

    assert run_folder(folder_with(tmp_path), defaults=defaults, run=run) == 1
    assert told in summary(tmp_path)["error"]


def test_a_run_without_a_result_has_failed(tmp_path):
    assert run_folder(folder_with(tmp_path), defaults=defaults, run=lambda *_: None) == 1
    assert "without a result" in summary(tmp_path)["error"]


def test_a_run_may_write_done_itself(tmp_path):
    def run(spec, folder, log):
        log.done(digest="d", artifact=folder, candidate={})

    assert run_folder(folder_with(tmp_path), defaults=defaults, run=run) == 0
    assert [event["kind"] for event in read(tmp_path / "events.jsonl")[0]].count("done") == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("{", "not JSON"),
        ('{"kind": "fraud", "recipe": "r", "epoch": 3}', "unknown epoch"),
        ('{"kind": "fraud", "recipe": "nix"}', "does not exist"),
        ('{"kind": "report", "recipe": "r"}', "is for fraud"),
        ('{"recipe": "r"}', "missing kind"),
    ],
)
def test_a_spec_that_does_not_fit_fails_the_run(tmp_path, body, told):
    (tmp_path / "spec.json").write_text(body)
    assert run_folder(tmp_path, defaults=defaults, run=lambda *_: None) == 1
    assert told in summary(tmp_path)["error"]


def test_a_spec_comes_back_as_it_went(tmp_path):
    spec_write(tmp_path, spec=BASE)
    assert spec_read(tmp_path) == BASE
    with pytest.raises(RunError, match="does not exist"):
        spec_read(tmp_path / "nothing")
    (tmp_path / "spec.json").write_text(json.dumps({"kind": "fraud", "recipe": "r", "seed": "x"}))
    with pytest.raises(InputError):
        spec_read(tmp_path)


def test_a_spec_of_another_kind_than_its_recipe_is_refused():
    with pytest.raises(RunError, match="is for fraud"):
        spec_complete(RunSpec(kind=ModelKind.REPORT, recipe="r"), base=BASE)


def test_sigterm_ends_a_run_as_cancelled_with_143(tmp_path):
    folder_with(tmp_path)
    code = (
        "import sys, threading\n"
        "from ml_core.contracts import ModelKind, RunSpec\n"
        "from ml_core.train.runner import run_folder\n"
        "def run(spec, folder, log):\n"
        "    print('ready', flush=True)\n"
        "    while True: threading.Event().wait(1)\n"
        "base = RunSpec(kind=ModelKind.FRAUD, recipe='r')\n"
        "sys.exit(run_folder(sys.argv[1], defaults=lambda name: base, run=run))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout.readline().strip() == "ready"
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 143
    child.stdout.close()
    assert summary(tmp_path)["error"] == "cancelled"
