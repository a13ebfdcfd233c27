"""The protocol: one start and one order for all systems, cells once each, going on where it was cut off."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ml_core.distill.tasks.request import Tuned
from ml_core.train.distill import cell as cells
from ml_core.train.distill import protocol
from ml_core.train.distill.protocol import measure, tune


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

    def cell(case, task, plan, teacher, ledger, *, system, seed, name, say):
        tried.append((system, name, seed))
        good = (plan.tuned.temperature, plan.tuned.share) == (4.0, 0.9)
        alphas = {"fitnets": 0.3, "minilm": 0.1, "dfad": 0.6}
        if system in alphas:
            good = good and plan.tuned.__getattribute__(f"{system}_alpha") == alphas[system]
        return type("Cell", (), {"dev": float(good)})()

    monkeypatch.setattr(protocol, "_cell", cell)
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


def test_shares_of_several_processes_are_the_whole(plan):
    cases = plan().cases
    for share in range(3):
        measure(plan(cases=cases, seeds=3, shard=(share, 3)), say=quiet)
    whole = measure(plan(cases=cases, seeds=3), say=lambda text: pytest.fail(text) if " seed " in text else None)[0]
    assert {(cell.system, cell.seed) for cell in whole.cells} == {(s, n) for s in ("ce", "dfad") for n in range(3)}


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
