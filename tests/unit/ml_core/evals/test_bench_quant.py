"""bench quant: losses are of the same examples, intervals are paired, the worst task is named, wrong words refused."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ml_core.distill.tasks.metrics import accuracy
from ml_core.errors import InputError
from ml_core.evals import bench_quant, bench_quant_loss
from ml_core.evals.bench_quant_loss import RATES, TASKS, loss_interval, worst_rows
from ml_core.evals.quant_report import f1_micro, token_accuracy
from ml_core.evals.quant_tasks import digits_subject
from ml_core.seed import seed_all


def parsed(*words):
    parser = argparse.ArgumentParser()
    bench_quant.add_arguments(parser)
    return parser.parse_args(words)


def test_digits_are_measured_in_fp32_converted_and_trained(tmp_path):
    out = tmp_path / "quant.json"
    words = ["--seconds", "0", "--loss", "--quick", "--tasks", "digits", "--systems", "assay,ptq_int4"]
    result = bench_quant.run(parsed(*words, "--out", str(out)))
    rows = {(row["case"], row["system"], row["metric"]): row for row in result["rows"]}
    exact = rows["quant/digits", "fp32", "accuracy"]["value"]
    for system in ("assay", "ptq_int4"):
        loss, value = rows["quant/digits", system, "loss_pct"], rows["quant/digits", system, "accuracy"]["value"]
        assert loss["value"] == pytest.approx(100 * (exact - value) / exact)
        assert loss["low"] <= loss["value"] <= loss["high"]
        assert loss["n"] == 96
        assert rows["quant/worst_task", system, "loss_pct"]["task"] == "digits"
    assert rows["quant/digits", "ptq_int4", "bytes"]["value"] < rows["quant/digits", "assay", "bytes"]["value"]
    assert rows["quant/digits", "assay", "bytes"]["value"] < 0.5 * rows["quant/digits", "fp32", "bytes"]["value"]
    assert result["meta"]["tasks"]["digits"]["lr"] > 0
    assert json.loads(out.read_text())["rows"] == json.loads(json.dumps(result["rows"]))


@pytest.fixture
def subject():
    seed_all(0)
    return digits_subject(quick=True)


def test_examples_that_choose_are_neither_trained_on_nor_measured(subject):
    chosen = {tuple(image.flatten().tolist()) for batch in subject.held_out for image in batch["image"]}
    trained = {tuple(image.flatten().tolist()) for batch in subject.batches(0) for image in batch["image"]}
    measured = []

    def seen(_, inputs):
        measured.extend(tuple(image.flatten().tolist()) for image in inputs[0])

    hook = subject.model.net.patch_embed.register_forward_pre_hook(seen)
    subject.answers(subject.model)
    hook.remove()
    assert chosen
    assert measured
    assert not chosen & trained
    assert not chosen & set(measured)
    assert not trained & set(measured)


@pytest.mark.parametrize("lr", [3e-4, 10.0])
def test_the_rate_that_is_best_on_dev_examples_is_taken_and_none_where_each_makes_it_worse(subject, monkeypatch, lr):
    def unseen(model):
        raise AssertionError("test examples do not choose")

    given = replace(subject, lr=lr, answers=unseen)
    losses = {}
    fit = bench_quant_loss.Quantizer.fit

    def watched(self, *words, **options):
        fitted = fit(self, *words, **options)
        losses[options["lr"]] = fitted.held_out_losses[1]
        losses[0.0] = fitted.held_out_losses[0]
        return fitted

    monkeypatch.setattr(bench_quant_loss.Quantizer, "fit", watched)
    quantizer, rate = bench_quant_loss._quantizer(given, {"bits": 4}, trained=True)
    plain, _ = bench_quant_loss._quantizer(given, {"bits": 4}, trained=False)
    assert set(losses) == {0.0, *(lr * share for share in RATES)}
    assert losses[rate] == min(losses.values())
    assert (rate == 0.0) == (lr == 10.0)
    batch = subject.held_out[0]
    with torch.no_grad():
        shown = [subject.outputs(each.model.eval(), batch) for each in (quantizer, plain)]
    assert torch.equal(*shown) == (rate == 0.0)


def test_the_interval_is_paired_and_holds_the_loss():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    exact = np.eye(2)[np.where(rng.random(400) < 0.9, labels, 1 - labels)]
    assert loss_interval(exact, exact, labels, metric=accuracy) == (0.0, 0.0, 0.0)
    worse = exact.copy()
    worse[:20] = worse[:20, ::-1]
    loss, low, high = loss_interval(exact, worse, labels, metric=accuracy)
    assert low < loss < high
    assert high - low < 12  # two independent draws would be apart by their own spread too


def test_the_worst_task_is_the_largest_loss_of_each_system():
    base = {"metric": "loss_pct", "unit": "%", "low": 0, "high": 0, "n": 1}
    rows = [
        base | {"case": "quant/a", "system": "assay", "value": -1.0},
        base | {"case": "quant/b", "system": "assay", "value": 0.5},
        base | {"case": "quant/a", "system": "ptq", "value": 3.0},
    ]
    worst = {row["system"]: (row["task"], row["value"]) for row in worst_rows(rows)}
    assert worst == {"assay": ("b", 0.5), "ptq": ("a", 3.0)}


def test_metrics_of_reports_are_ratios_of_sums():
    counts = np.array([[1.0, 4.0], [3.0, 6.0]])
    assert f1_micro(counts, counts)(np.ones(2)) == pytest.approx(2 * 4 / 10)
    assert token_accuracy(counts, counts)(np.array([0.0, 2.0])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--tasks", "digits,chess"], "chess"),
        (["--tasks", ""], "tasks"),
        (["--systems", "int5"], "int5"),
        (["--tasks", "sst2"], "text_model"),
    ],
)
def test_unknown_tasks_and_systems_and_missing_folders_are_refused(words, named):
    assert "sst2" in TASKS
    with pytest.raises(InputError, match=named):
        bench_quant.run(parsed("--seconds", "0", "--loss", *words))
