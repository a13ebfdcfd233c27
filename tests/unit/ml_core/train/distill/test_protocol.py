"""The protocol: one start and one order for all systems, cells once each, going on where it was cut off."""

import json
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from ml_core.distill.tasks.request import Tuned
from ml_core.errors import RunError
from ml_core.evals.distill_rows import rows_of
from ml_core.train.distill import cell as cells
from ml_core.train.distill import protocol
from ml_core.train.distill.ledger import file_name
from ml_core.train.distill.protocol import measure, recorded, tune
from tests.bench import ledger_pack

HOLD = """
import fcntl, sys
streams = [open(path, "w") for path in sys.argv[1:]]
for stream in streams:
    fcntl.flock(stream, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def quiet(text):
    pass


def test_a_benchmark_that_was_cut_off_goes_on_and_reaches_the_same_numbers(plan, monkeypatch, tmp_path):
    whole = measure(plan(work=tmp_path / "whole"), say=quiet)[0]
    calls = []
    run = protocol.cell_run

    def cut(*arguments, **options):
        calls.append(options["system"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    monkeypatch.setattr(protocol, "cell_run", cut)
    with pytest.raises(KeyboardInterrupt):
        measure(plan(work=tmp_path / "cut"), say=quiet)
    resumed = measure(plan(work=tmp_path / "cut"), say=quiet)[0]
    assert calls == ["ce", "dfad", "dfad"]
    assert [cell.values for cell in resumed.cells] == [cell.values for cell in whole.cells]
    assert all(np.array_equal(resumed.outputs[key], whole.outputs[key]) for key in whole.outputs)


def test_a_finished_benchmark_runs_nothing_again_and_other_settings_run_anew(plan, monkeypatch):
    measure(plan(), say=quiet)
    monkeypatch.setattr(protocol, "cell_run", lambda *a, **k: pytest.fail("ran again"))
    measure(plan(), say=quiet)
    with pytest.raises(pytest.fail.Exception):
        measure(plan(tuned=Tuned(dfad_alpha=0.1)), say=quiet)


def test_a_torn_last_line_is_passed_over(plan, tmp_path):
    first = measure(plan(), say=quiet)[0]
    path = tmp_path / "cells.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][:40])
    again = measure(plan(), say=quiet)[0]
    assert [cell.values for cell in again.cells] == [cell.values for cell in first.cells]
    assert len([line for line in path.read_text().splitlines() if line.endswith("}")]) == 2


def test_all_systems_start_from_the_same_weights_and_see_the_same_batches(plan, monkeypatch):
    starts, batches = {}, {}
    real = cells.model_train

    def spy(model, *, loss, **options):
        system = len(starts)
        starts[system] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        batches[system] = []

        def watched(student, batch, progress):
            batches[system].append((batch["rows"].tolist(), float(batch["image"].sum())))
            return loss(student, batch, progress)

        real(model, loss=watched, **options)

    monkeypatch.setattr(cells, "model_train", spy)
    measure(plan(systems=("ce", "kd", "minilm", "dfad", "no_shift")), say=quiet)
    assert len(starts) == 5
    assert all(torch.equal(value, starts[s][name]) for s in starts for name, value in starts[0].items())
    assert all(batches[s] == batches[0] for s in batches)


def test_seeds_differ(plan):
    result = measure(plan(systems=("ce",), seeds=2), say=quiet)[0]
    assert not np.array_equal(result.outputs[("ce", 0)], result.outputs[("ce", 1)])


def test_minilm_is_left_out_where_the_teacher_has_no_attention(plan):
    from ml_core.distill.tasks import digits

    result = measure(plan(cases=digits.cases(quick=True)[:1], systems=("ce", "minilm")), say=quiet)[0]
    assert [cell.system for cell in result.cells] == ["ce"]


def test_the_alignment_after_the_first_and_last_epoch_is_kept(plan):
    result = measure(plan(), say=quiet)[0]
    by_system = {cell.system: cell for cell in result.cells}
    assert by_system["ce"].alignment == {}
    assert set(by_system["dfad"].alignment) == {"first", "last"}
    assert {"cos_1", "cka_3", "weight_2"} <= set(by_system["dfad"].alignment["last"])


def test_tuning_takes_the_best_mean_on_dev_and_says_on_what(plan, monkeypatch):
    tried = []

    def cell(stage, tuned, *, system, seed, name):
        tried.append((system, name, seed))
        good = (tuned.temperature, tuned.share) == (4.0, 0.9)
        alphas = {"fitnets": 0.3, "minilm": 0.1, "dfad": 0.6}
        if system in alphas:
            good = good and getattr(tuned, f"{system}_alpha") == alphas[system]
        return type("Cell", (), {"dev": float(good)})()

    monkeypatch.setattr(protocol._Stage, "_cell", cell)
    tuned = tune(plan().cases[0], plan(), say=quiet)
    assert tuned == Tuned(
        tuned_on="digits", temperature=4.0, share=0.9, fitnets_alpha=0.3, minilm_alpha=0.1, dfad_alpha=0.6
    )
    seeds = {seed for _, _, seed in tried}
    assert len(seeds) == len(protocol.TUNING_SEEDS)
    assert min(seeds) > 1000


def test_a_ledgers_lines_are_json_with_the_settings_digest(plan, tmp_path):
    measure(plan(), say=quiet)
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert [line["system"] for line in lines] == ["ce", "dfad"]
    assert lines[0]["settings"] != lines[1]["settings"]
    assert not (tmp_path / "running").exists() or not any((tmp_path / "running").iterdir())


def test_what_another_process_is_at_is_left_to_it_and_waited_for(plan, monkeypatch, tmp_path):
    case, ran = plan().cases[0], []
    real = protocol.cell_run

    def spy(*arguments, **options):
        ran.append((options["system"], options["seed"]))
        return real(*arguments, **options)

    monkeypatch.setattr(protocol, "cell_run", spy)
    paths = [tmp_path / "locks" / file_name(case.name, 0), tmp_path / "locks" / file_name(case.name, 0, "ce")]
    paths[0].parent.mkdir(parents=True)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    slept = []

    def finished(seconds):
        slept.append(list(ran))
        other.communicate("done")  # the other process ends without having finished: its seed is free again

    monkeypatch.setattr(protocol.time, "sleep", finished)
    result = measure(plan(seeds=2), say=quiet)[0]
    # its own seed first, then what is free of the other's
    assert slept == [[("ce", 1), ("dfad", 1), ("dfad", 0)]]
    assert ran == [("ce", 1), ("dfad", 1), ("dfad", 0), ("ce", 0)]
    assert {(cell.system, cell.seed) for cell in result.cells} == {(s, n) for s in ("ce", "dfad") for n in range(2)}


def test_a_process_that_shall_not_wait_stops_when_others_are_at_all_that_is_left(plan, monkeypatch, tmp_path):
    name = plan().cases[0].name
    paths = [tmp_path / "locks" / file_name(name, 0), tmp_path / "locks" / file_name(name, 0, "ce")]
    paths[0].parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        # one pass runs the free seed, the next finds nothing to take; a wait between them is for what may come free
        monkeypatch.setattr(protocol.time, "sleep", lambda seconds: None)
        assert measure(plan(seeds=2, systems=("ce",), waits=False), say=quiet) == []
        other.communicate("done")
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert [(line["system"], line["seed"]) for line in lines] == [("ce", 1)]


def test_a_packed_ledger_may_hold_some_cases_alone(plan, tmp_path):
    measure(plan(work=tmp_path / "work", systems=("ce",)), say=quiet)
    assert ledger_pack.pack(tmp_path / "work", tmp_path / "all.tgz", cases="/digits") == 1
    assert ledger_pack.pack(tmp_path / "work", tmp_path / "none.tgz", cases="/films") == 0


def test_two_processes_run_each_cell_once_and_both_know_all(tmp_path):
    words = ["bench", "distill", "--tasks", "vit96x6>vit32x3/digits", "--systems", "ce,kd", "--seeds", "3", "--quick"]
    command = [sys.executable, "-m", "ml_core", *words, "--replicates", "2", "--work", str(tmp_path), "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    bodies = [json.loads(process.communicate()[0].splitlines()[-1]) for process in both]
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert sorted((line["system"], line["seed"]) for line in lines) == [(s, n) for s in ("ce", "kd") for n in range(3)]
    values = [[(row["system"], row["seed"], row["value"]) for row in body["rows"]] for body in bodies]
    assert values[0] == values[1]


def test_a_seed_that_was_cut_off_starts_over_under_a_teacher_of_other_bits(plan, monkeypatch, tmp_path):
    first = measure(plan(), say=quiet)[0]
    ran = []
    real, ready = protocol.cell_run, protocol.teacher_ready

    def spy(*arguments, **options):
        ran.append(options["system"])
        return real(*arguments, **options)

    monkeypatch.setattr(protocol, "cell_run", spy)
    other = lambda *a, **k: replace(ready(*a, **k), digest="other")  # noqa: E731
    monkeypatch.setattr(protocol, "teacher_ready", other)
    assert measure(plan(), say=quiet)[0].cells == first.cells
    assert ran == []
    measure(plan(systems=("ce", "dfad", "kd")), say=quiet)
    assert ran == ["ce", "dfad", "kd"]


def test_rows_come_out_of_a_packed_folder_without_any_training(plan, monkeypatch, tmp_path):
    first = measure(plan(work=tmp_path / "there", seeds=2), say=quiet)[0]
    assert ledger_pack.pack(tmp_path / "there", tmp_path / "work.tgz") == 4
    with tarfile.open(tmp_path / "work.tgz") as packed:
        packed.extractall(tmp_path / "here", filter="data")
    assert not list((tmp_path / "here").rglob("*.safetensors"))
    monkeypatch.setattr(protocol, "cell_run", lambda *a, **k: pytest.fail("ran again"))
    monkeypatch.setattr(protocol, "teacher_ready", lambda *a, **k: pytest.fail("a teacher was needed"))
    again = measure(plan(work=tmp_path / "here", seeds=2), say=quiet)[0]
    assert rows_of([again], replicates=20) == rows_of([first], replicates=20)


def test_what_is_recorded_gives_the_rows_of_another_machine_without_training(plan, monkeypatch, tmp_path):
    first = measure(plan(work=tmp_path, seeds=2), say=quiet)[0]
    lines = (tmp_path / "cells.jsonl").read_text().splitlines()
    # as libraries of other versions have it: other digests of data and of teachers' recipes
    bodies = [json.loads(line) | {"settings": "other"} for line in lines]
    (tmp_path / "cells.jsonl").write_text("".join(f"{json.dumps(body)}\n" for body in bodies))
    (place,) = (tmp_path / "teachers").iterdir()
    place.rename(tmp_path / "teachers" / "elsewhere")
    monkeypatch.setattr(protocol, "cell_run", lambda *a, **k: pytest.fail("ran again"))
    monkeypatch.setattr(protocol, "teacher_ready", lambda *a, **k: pytest.fail("a teacher was needed"))
    again = recorded(plan(work=tmp_path, seeds=2), say=quiet)[0]
    assert rows_of([again], replicates=20) == rows_of([first], replicates=20)


def test_what_is_recorded_leaves_out_systems_that_lack_a_seed_and_says_so(plan, tmp_path):
    measure(plan(work=tmp_path, seeds=2, systems=("ce",)), say=quiet)
    measure(plan(work=tmp_path, seeds=1, systems=("ce", "kd")), say=quiet)
    said = []
    result = recorded(plan(work=tmp_path, seeds=2, systems=("ce", "kd")), say=said.append)[0]
    assert {(cell.system, cell.seed) for cell in result.cells} == {("ce", 0), ("ce", 1)}
    assert said == [f"{result.case}: not all 2 seeds of kd"]
    assert recorded(plan(work=tmp_path, seeds=2, systems=("kd",)), say=quiet) == []


def test_what_is_recorded_of_two_teachers_in_one_seed_is_refused(plan, tmp_path):
    measure(plan(work=tmp_path), say=quiet)
    bodies = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    bodies[0]["teacher"] = "another"
    (tmp_path / "cells.jsonl").write_text("".join(f"{json.dumps(body)}\n" for body in bodies))
    with pytest.raises(RunError, match="several teachers"):
        recorded(plan(work=tmp_path), say=quiet)


def test_what_is_recorded_of_other_labels_is_refused(plan, tmp_path):
    measure(plan(work=tmp_path, systems=("ce",)), say=quiet)
    body = json.loads((tmp_path / "cells.jsonl").read_text())
    body["values"]["accuracy"] += 0.01
    (tmp_path / "cells.jsonl").write_text(f"{json.dumps(body)}\n")
    with pytest.raises(RunError, match="recorded"):
        recorded(plan(work=tmp_path, systems=("ce",)), say=quiet)
