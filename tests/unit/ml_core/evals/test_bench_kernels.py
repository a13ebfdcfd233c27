"""Benchmarks of kernels, graphs and decoding: rows in the one form on a CPU, and nothing where a system is wrong."""

import json

import pytest
import torch

from ml_core.__main__ import bench_names, main
from ml_core.evals import bench_decode, bench_report, bench_superops
from ml_core.layers.blocks import Block

FORM = {"case", "system", "metric", "value", "unit", "low", "high", "n"}
SUPEROPS = ["bench", "superops", "--device", "cpu", "--shapes", "1x8", "--seconds", "0.01", "--no-compile", "--json"]
DECODE = ["bench", "decode", "--device", "cpu", "--new", "4", "--runs", "1", "--json"]
REPORT = ["bench", "report", "--device", "cpu", "--tiny", "--no-peers", "--runs", "1", "--json"]


def rows_of(capsys, command):
    assert main(command) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert all(set(row) == FORM for row in rows)
    return rows


@pytest.fixture
def _small(monkeypatch):
    for name, value in (("D", 24), ("H", 3), ("FFN", 48), ("LAYERS", 2), ("MAX_N", 8)):
        monkeypatch.setattr(bench_superops, name, value)


def test_there_is_one_for_each_part():
    assert {"dpe", "segments", "superops", "graphs", "decode", "report"} <= set(bench_names())


@pytest.mark.usefixtures("_small")
def test_superops_times_ours_beside_torchs_encoder_and_counts_launches(capsys):
    rows = rows_of(capsys, SUPEROPS)
    launches = {row["system"]: row["value"] for row in rows if row["metric"] == "launches"}
    assert launches["assay_launched"] < launches["assay_unfused"]
    assert {row["system"] for row in rows if row["metric"] == "ms"} == {*launches, "assay"}
    assert {row["case"] for row in rows} == {"encoder4x768/b1n8"}


@pytest.mark.usefixtures("_small")
def test_superops_reports_nothing_where_a_block_is_wrong(capsys, monkeypatch):
    real = Block.forward
    monkeypatch.setattr(
        Block, "forward", lambda self, x, **given: real(self, x, **given) * (1 + 1e-3 * (x.dtype == torch.float32))
    )
    assert main(SUPEROPS) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "bench_red"


def test_decode_times_both_kinds_of_weights_beside_transformers(capsys):
    rows = rows_of(capsys, DECODE)
    assert {(row["case"], row["system"]) for row in rows} == {
        ("decodetiny/b1/bf16", "assay"),
        ("decodetiny/b1/int8", "assay"),
        ("decodetiny/b1/bf16", "transformers_eager"),
    }
    assert all(row["value"] > 0 for row in rows)


def test_decode_reports_nothing_where_the_text_differs(capsys, monkeypatch):
    real = bench_decode.DecodeEngine.generate
    monkeypatch.setattr(
        bench_decode.DecodeEngine,
        "generate",
        lambda self, ids, **given: [row[::-1] for row in real(self, ids, **given)],
    )
    assert main(DECODE) == 2
    assert "transformers" in json.loads(capsys.readouterr().out)["message"]


def test_report_writes_as_many_tokens_as_it_says(capsys):
    (row,) = rows_of(capsys, REPORT)
    assert (row["case"], row["system"], row["metric"]) == ("report/16x128", "assay_tiny", "s")


def test_report_refuses_other_text_and_other_lengths(capsys, monkeypatch):
    monkeypatch.setattr(bench_report, "TOKENS", 130)
    assert main(REPORT) == 2
    assert "not 130" in json.loads(capsys.readouterr().out)["message"]
    monkeypatch.undo()
    monkeypatch.setattr(bench_report.PlanDecoder, "decode", lambda self, memory, plans, **given: [])
    assert main(REPORT) == 2
    assert "decode_plan" in json.loads(capsys.readouterr().out)["message"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_graphs_says_that_it_needs_cuda(capsys):
    assert main(["bench", "graphs", "--json"]) == 2
    assert "no CUDA" in json.loads(capsys.readouterr().out)["message"]
