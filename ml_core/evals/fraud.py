"""Measuring the fraud student: replay a history, then score a test file in time order, labels 7 days late."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_core.data.handbook import Table, events_of, protocol_scores, read_table
from ml_core.data.mapped_table import MappedTable, join_mapped, read_mapped
from ml_core.data.mapping import TableMapping, read_mapping
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
    parser.add_argument("--mapping", type=Path, help="what the files' columns are (the model's own mapping, if any)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score the test file; returns n, frauds, auc, ap, cp100, model_digest, seconds."""
    started = time.monotonic()
    scorer = FraudScorer(arguments.model)
    mapping = _mapping(scorer, arguments.mapping)
    history, test = (_read(path, mapping) for path in (arguments.history, arguments.test))
    if not len(test):
        raise InputError(f"{arguments.test} holds no transactions")
    whole = join_mapped(history, test)
    rows = np.arange(len(history), len(whole))
    table = whole.table
    score = score_mapped(scorer, whole, first=len(history))
    if arguments.scores is not None:
        _write(arguments.scores, ids=test.table.id, score=score)
    frauds = int(test.table.fraud.sum())
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


def score_mapped(scorer: FraudScorer, mapped: MappedTable, *, first: int) -> npt.NDArray[np.float64]:
    """Probabilities of rows `first`.. of a table read through a mapping, further inputs included."""
    extras = None if scorer.extras is None else scorer.extras.encode(mapped.extras)
    return score_table(scorer, mapped.table, first=first, extras=extras, delay_days=mapped.delay_days)


def score_table(
    scorer: FraudScorer,
    table: Table,
    *,
    first: int,
    only: npt.NDArray[np.int64] | None = None,
    extras: npt.NDArray[np.float32] | None = None,
    delay_days: int = 7,
) -> npt.NDArray[np.float64]:
    """Probabilities of rows `first`.. (NaN where `only` is given and leaves a row out); memory stays flat.

    `extras` (n, e) are the encoded further inputs of the table's rows.
    """
    events, replay = events_of(table, delay_days=delay_days), Replay()
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
            if extras is not None:
                part = part.with_extras(extras[begin + rows])
            out[begin + rows] = scorer.probabilities(part)
    return out[first:]


def _mapping(scorer: FraudScorer, path: Path | None) -> TableMapping | None:
    """The mapping named, else the model's own; a model with further inputs reads tables of its own mapping alone."""
    own = None if scorer.extras is None else scorer.extras.mapping
    named = own if path is None else read_mapping(path)
    if own is not None and named != own:
        raise InputError(f"mapping: the model reads tables of its own mapping {own.name!r} alone")
    return named


def _read(path: Path, mapping: TableMapping | None) -> MappedTable:
    if mapping is None:
        return MappedTable(table=read_table(path), extras={}, delay_days=7)
    return read_mapped(path, mapping)


def _write(path: Path, *, ids: npt.NDArray, score: npt.NDArray[np.float64]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"TRANSACTION_ID": ids, "score": score}), path)
