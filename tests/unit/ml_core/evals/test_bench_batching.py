"""The benchmark of batching: its virtual time is right, every policy serves all, rows come in the one form."""

import json

import numpy as np
import pytest

from ml_core.__main__ import main
from ml_core.evals.bench_batching import FIXED, TIMEOUT, Request, policies, replay, trace_of
from ml_core.serving.batcher import cost_table

LENGTHS, ROWS = (16, 64, 128, 512), (1, 4, 32)
TABLE = cost_table({(rows, length): 1.0 + rows * length / 64 for rows in ROWS for length in LENGTHS})
POLICIES = policies(TABLE)


def test_a_batch_keeps_those_waiting_who_come_meanwhile():
    trace = [Request(at=0.0, length=64), Request(at=0.5, length=64), Request(at=10.0, length=16)]
    outcome = replay(POLICIES["fifo_padded"](), trace)
    # 2 ms for one of 64; the second waits 1.5 and takes 2; the third comes to an idle server
    assert outcome.latencies.tolist() == pytest.approx([2.0, 3.5, 1.25])
    assert outcome.makespan == pytest.approx(11.25)
    assert outcome.padding == pytest.approx(0.0)


def test_a_fixed_batch_waits_until_it_is_full_or_too_old():
    late = replay(POLICIES["fixed_batch"](), [Request(at=0.0, length=16)])
    assert late.latencies[0] == pytest.approx(TIMEOUT + 1.25)
    full = replay(POLICIES["fixed_batch"](), [Request(at=0.0, length=16)] * FIXED)
    assert full.latencies.max() == pytest.approx(1.0 + FIXED * 16 / 64)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_serves_all_and_nobody_before_it_came(name):
    trace = trace_of(400, per_second=300.0, seed=3)
    outcome = replay(POLICIES[name](), trace)
    least = min(float(TABLE.dense()[0, 1]), 1.0)
    assert np.isfinite(outcome.latencies).all()
    assert outcome.latencies.min() >= least
    assert 0.0 <= outcome.padding < 100.0
    assert (outcome.padding == 0.0) == (name == "packed_oracle")


def test_padding_is_what_was_computed_for_nothing():
    both = [Request(at=0.0, length=16), Request(at=0.0, length=128)]
    assert replay(POLICIES["fifo_padded"](), both).padding == pytest.approx(100 * (1 - 144 / 256))
    assert replay(POLICIES["assay"](), both).padding == pytest.approx(0.0)


def test_the_trace_is_the_one_that_is_described():
    trace = trace_of(20_000, per_second=100.0, seed=0)
    lengths = np.array([each.length for each in trace])
    assert (lengths.min(), lengths.max()) == (8, 512)
    assert np.median(lengths) == pytest.approx(np.exp(4.2), rel=0.03)
    assert trace[-1].at == pytest.approx(200_000, rel=0.03)


def test_rows_come_in_the_one_form_and_ours_packs_more_than_fifo(tmp_path, capsys):
    table = {"lengths": LENGTHS, "rows": ROWS, "ms": TABLE.ms, "padded": False}
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    options = ["--table", str(path), "--save-table", str(tmp_path / "again.json"), "--requests", "300", "--seeds", "2"]
    assert main(["bench", "batching", *options, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert all(set(row) == {"case", "system", "metric", "value", "unit", "low", "high", "n"} for row in rows)
    found = {(row["case"], row["system"]): row["value"] for row in rows}
    assert found["batching/throughput_over_fifo", "assay"] > 1.2
    assert found["batching/padding", "assay"] < found["batching/padding", "fixed_batch"]
    assert found["batching/decision", "assay"] > 0
    assert json.loads((tmp_path / "again.json").read_text())["ms"] == [list(each) for each in TABLE.ms]
