"""Measuring and serving on real engines: refusals with reasons, missing engines, the shipped fraud student's scores."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ml_core.contracts import ScoreRequest, Transaction
from ml_core.errors import EngineMissing
from ml_core.evals.fraud import SHIPPED
from ml_core.quant import Quantizer
from ml_core.serving.engines import parity
from ml_core.serving.engines import table as tables
from ml_core.serving.engines.artifact import PROBABILITY, THRESHOLDS, described, measure_artifact
from ml_core.serving.engines.build import compiled, export_for
from ml_core.serving.engines.interface import SERVABLE, SYSTEMS, Program
from ml_core.serving.engines.measure import measure
from ml_core.serving.engines.programs import simulated_inputs
from ml_core.serving.engines.served import served
from ml_core.serving.fraud import FraudScorer

ORT, HELD = SYSTEMS["onnxruntime int8"], SYSTEMS["openvino int8 in fp32"]
SOME = (SYSTEMS["torch int8"], ORT, HELD)
QUICK = {"rounds": 2, "seconds": 0.01}


@pytest.fixture
def tiny():
    """Two layers: what is exported in a moment."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 8))
    return Program(
        module=Quantizer(layers).convert()[0], inputs=("x",), outputs=("y",), axes={"x": {0: "b"}}, limits={"b": 64},
        example=lambda sizes, seed: (torch.randn(sizes["b"], 32, generator=torch.Generator().manual_seed(seed)),),
    )  # fmt: skip


def test_measuring_times_what_is_admitted_and_says_why_the_rest_is_not(tiny, tmp_path):
    table, graphs = measure(
        tiny, digest="ab" * 32, shapes=[{"b": 1}, {"b": 8}], threads=1, systems=SOME, together=True,
        check=lambda call, reference: "not liked" if call.system is HELD else "", **QUICK,
    )  # fmt: skip
    assert [(each.name, each.refused) for each in table.systems] == [
        ("torch int8", ""), (ORT.name, ""), (HELD.name, "not liked"),
    ]  # fmt: skip
    assert all(set(shape.timings) == {"torch int8", ORT.name} for shape in table.shapes)
    tables.write(tmp_path, table, graphs=graphs)
    tables.graph(tmp_path, next(each for each in table.systems if each.file))


def test_what_was_chosen_serves_and_what_was_not_measured_is_torch(tiny, tmp_path):
    shapes = [{"b": 1}]
    table, graphs = measure(tiny, digest="ab" * 32, shapes=shapes, threads=1, systems=SOME[:2], **QUICK)
    assert served(tiny, digest="ab" * 32, folder=tmp_path, threads=1) is None
    tables.write(tmp_path, table, graphs=graphs)
    found = served(tiny, digest="ab" * 32, folder=tmp_path, threads=1)
    assert found is not None
    given = tiny.example({"b": 5}, 0)
    wanted = compiled(tiny, system=ORT, model=next(iter(graphs.values())), threads=1)(*given)[0]
    assert torch.equal(found({"b": 5}, *given)[0], wanted)
    (tmp_path / next(iter(graphs))).write_bytes(b"")
    with pytest.raises(tables.TableError):
        served(tiny, digest="ab" * 32, folder=tmp_path, threads=1)


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_an_engine_that_is_not_installed_is_an_error_and_a_reason_in_the_table(tiny, monkeypatch, package):
    system = ORT if package == "onnxruntime" else HELD
    model = export_for(tiny, system=system, sizes={"b": 2})
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineMissing, match=f"{package} is not installed here: pip install"):
        compiled(tiny, system=system, model=model, threads=1)


def test_an_exporter_that_is_not_installed_is_a_reason_in_the_table(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EngineMissing, match="onnxscript"):
        export_for(tiny, system=ORT, sizes={"b": 2})
    table, _ = measure(tiny, digest="ab" * 32, shapes=[{"b": 1}], threads=1, systems=SOME[:2], **QUICK)
    assert "onnxscript" in table.systems[1].refused
    assert [choice.system for choice in tables.choose(table)] == ["torch int8"]


@pytest.mark.slow
def test_the_shipped_fraud_student_is_served_alike_by_the_engine_that_was_chosen(tmp_path, monkeypatch):
    # held to account in test_parity; here it would be ten seconds of exporting
    monkeypatch.setattr(parity, "product_error", lambda *given, **named: 0.0)
    table, _ = measure_artifact(
        SHIPPED, into=tmp_path, systems=(SYSTEMS["torch int8"], ORT), shapes=[{"b": 1}, {"b": 8}], **QUICK
    )
    by_torch, by_table = FraudScorer(SHIPPED), FraudScorer(SHIPPED, tables=tmp_path)
    said = described(SHIPPED, tables_in=tmp_path)
    assert any(line.startswith(f"b1: {choice.system}") for line in said for choice in tables.choose(table)[:1])
    if table.systems[1].refused:
        assert by_table.served is None, "and described says why"
        assert any(line.startswith(f"refused: {ORT.name}: ") for line in said)
        return
    assert by_table.served is not None
    some = simulated_inputs()
    wanted, found = by_torch.probabilities(some), by_table.probabilities(some)
    assert np.abs(wanted - found).max() <= PROBABILITY
    assert all(((wanted >= at) == (found >= at)).all() for at in THRESHOLDS)
    alone = [by_table.probabilities(part(some, row))[0] for row in range(40)]
    assert alone == found[:40].tolist(), "to the last bit, so that a recomputed alert is identical"
    # what one engine scored is found again by asking for it
    paid = Transaction(id="a", at=10**9, card="c", terminal="t", amount_cents=123_45)
    request = ScoreRequest(model=None, transactions=(paid,), explain_from=0.0)
    before, now = by_torch.score(request), by_table.score(request)
    assert (before.engine, now.engine) == ("torch int8", ORT.name)
    again = by_table.score(replace(request, engine="torch int8"))
    assert (again.scores, again.engine) == (before.scores, "torch int8")
    assert by_table.score(replace(request, engine=ORT.name)).scores == now.scores
    with pytest.raises(EngineMissing, match="does not serve this model here"):
        by_torch.score(replace(request, engine=ORT.name))


def part(inputs, row):
    rows = slice(row, row + 1)
    return type(inputs)(features=inputs.features[rows], card=inputs.card[rows], terminal=inputs.terminal[rows])


def test_nothing_that_is_compiled_shape_by_shape_is_served():
    assert not any(system.compiled for system in SERVABLE)
