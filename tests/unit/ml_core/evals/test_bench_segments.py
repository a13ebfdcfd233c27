"""The benchmark of segmented attention: its gate can fail, its memory is what is alive, its needles can be found."""

import json

import pytest
import torch

from ml_core.__main__ import main
from ml_core.evals import bench_segments
from ml_core.evals.bench import BenchError
from ml_core.evals.bench_segments import PeakBytes, dense
from ml_core.evals.needle import WORDS_ASKED, NeedleConfig, needles
from ml_core.layers.segments import SegmentedAttention


def test_the_command_checks_and_measures(capsys):
    words = ["--device", "cpu", "--d", "64", "--layers", "1", "--segment", "512", "--steps", "2", "--inputs", "1"]
    assert main(["bench", "segments", *words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    found = {(row["case"], row["metric"]): row["value"] for row in rows}
    assert 1.0 < found["segments/memory_32k_over_4k", "ratio"] < 1.19
    assert {case for case, metric in found if metric == "accuracy"} == {
        "segments/needle_256", "segments/needle_512", "segments/needle_2k",
    }  # fmt: skip


def test_the_gate_stops_a_layer_that_is_not_its_definition(monkeypatch):
    monkeypatch.setattr(bench_segments, "dense", lambda layer, x: dense(layer, x) + 1e-6)
    with pytest.raises(BenchError, match="off the definition"):
        bench_segments._gate()


def test_the_definition_as_one_matrix_is_the_layer():
    torch.manual_seed(0)
    layer = SegmentedAttention(8, 2, segment=4, sinks=1).double()
    torch.nn.init.normal_(layer.far_bias)
    x = torch.randn(1, 23, 8, dtype=torch.float64)
    assert torch.allclose(layer(x), dense(layer, x), atol=1e-12)


def test_peak_bytes_are_those_alive_at_once():
    with PeakBytes() as counted:
        for _ in range(5):
            kept = torch.ones(1_000)
            kept.view(10, 100)
            del kept
    assert (counted.peak, counted.now) == (4_000, 0)
    with PeakBytes() as counted:
        both = torch.ones(1_000), torch.ones(500)
    assert counted.peak == counted.now == 6_000
    assert len(both) == 2


def test_each_needle_is_whole_in_a_segment_of_its_own_and_asked_for_once():
    config = NeedleConfig(segment=16, needles=5)
    some = needles(config, length=256, batch=7, generator=torch.Generator().manual_seed(0))
    asked = some.ids[:, some.at]
    assert torch.equal(some.at, 256 - 5 * WORDS_ASKED + 1 + torch.arange(5) * WORDS_ASKED)
    for row in range(7):
        assert len(set(some.segment[row].tolist())) == 5
        for key, value, segment in zip(asked[row], some.answer[row], some.segment[row], strict=True):
            start, stop = int(segment) * 16, int(segment) * 16 + 16
            place = int((some.ids[row, start:stop] == key).nonzero()[0]) + start
            assert some.ids[row, place + 1] == 32 + value
            assert place + 1 < stop <= 256 - 16
