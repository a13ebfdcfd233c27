"""What other apps may ask of fraud: labelled transactions for training, counts for the rail."""

from datetime import datetime
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from apps.core import clock
from apps.fraud import selectors

__all__ = ["labelled_transactions_write", "queue_counts"]

_ROWS = 50_000
_SCHEMA = pa.schema(
    [
        ("TRANSACTION_ID", pa.string()),
        ("TX_DATETIME", pa.timestamp("ms")),
        ("CUSTOMER_ID", pa.string()),
        ("TERMINAL_ID", pa.string()),
        ("TX_AMOUNT", pa.float64()),
        ("TX_FRAUD", pa.int8()),
    ]
)


def labelled_transactions_write(*, path: Path, since: datetime, until: datetime) -> int:
    """Write the transactions of [since, until) whose truth is known, by time, as parquet; returns how many.

    Amounts are units with two decimals, moments UTC, cards and terminals opaque keys.
    """
    rows = selectors.labelled_transactions(since=since, until=until, known_by=clock.now())
    written = 0
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        while chunk := list(islice(rows, _ROWS)):
            ids, moments, cards, terminals, cents, frauds = zip(*chunk, strict=True)
            columns = [
                [str(each) for each in ids],
                [at.replace(tzinfo=None) for at in moments],
                cards,
                terminals,
                [each / 100 for each in cents],
                [int(each) for each in frauds],
            ]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
            written += len(chunk)
    return written


def queue_counts() -> dict[str, int]:
    """How many alerts are open, escalated and closed today."""
    return selectors.counts(at=clock.now())
