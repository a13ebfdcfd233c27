"""Measuring the fraud student: replay a history, then score a test file in time order, labels 7 days late."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_core.data.handbook import Table, events_of, join, protocol_scores, read_table
from ml_core.data.replay import Inputs, Replay
from ml_core.errors import InputError
from ml_core.serving.fraud import FraudScorer

CHUNK = 10_000
SHIPPED = Path(__file__).resolve().parents[1] / "pretrained" / "fraud-student"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m ml_core eval fraud`."""
    parser.add_argument("--history", type=Path, required=True, help="parquet of the Handbook's raw columns; not scored")
    parser.add_argument("--test", type=Path, required=True, help="parquet that follows it in time; every row is scored")
    parser.add_argument("--scores", type=Path, help="write TRANSACTION_ID and score here")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of the model (the shipped student)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score the test file; returns n, frauds, auc, ap, cp100, model_digest, seconds."""
    started = time.monotonic()
    scorer = FraudScorer(arguments.model)
    history, test = read_table(arguments.history), read_table(arguments.test)
    if not len(test):
        raise InputError(f"{arguments.test} holds no transactions")
    table = join(history, test)
    rows = np.arange(len(history), len(table))
    score = score_table(scorer, table, first=len(history))
    if arguments.scores is not None:
        _write(arguments.scores, ids=test.id, score=score)
    frauds = int(test.fraud.sum())
    # with one class only there is nothing to rank: the figures are null, not an error
    figures = (
        protocol_scores(table, rows, score) if 0 < frauds < len(test) else {"auc": None, "ap": None, "cp100": None}
    )
    return {
        "n": len(test),
        "frauds": frauds,
        **figures,
        "model_digest": scorer.digest,
        "seconds": round(time.monotonic() - started, 3),
    }


def score_table(
    scorer: FraudScorer, table: Table, *, first: int, only: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float64]:
    """Probabilities of rows `first`.. (NaN where `only` is given and leaves a row out); memory stays flat."""
    events, replay = events_of(table), Replay()
    out = np.full(len(table), np.nan)
    wanted = np.arange(len(table)) >= first
    if only is not None:
        wanted &= np.isin(np.arange(len(table)), only)
    for begin in range(0, len(table), CHUNK):
        end = min(begin + CHUNK, len(table))
        rows = np.flatnonzero(wanted[begin:end])
        inputs = replay.feed(events.part(begin, end), tokens=len(rows) > 0)
        if len(rows):
            part = Inputs(features=inputs.features[rows], card=inputs.card[rows], terminal=inputs.terminal[rows])
            out[begin + rows] = scorer.probabilities(part)
    return out[first:]


def _write(path: Path, *, ids: npt.NDArray, score: npt.NDArray[np.float64]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"TRANSACTION_ID": ids, "score": score}), path)
