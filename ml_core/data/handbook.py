"""The Fraud Detection Handbook's raw columns and its protocol (Le Borgne et al., 2022): folds, Card Precision@k.

Money becomes whole cents in the first line that sees it: in the Handbook's own file noise below a cent gives the label
away. Rows are sorted by time, ties by TRANSACTION_ID (as numbers where they are numbers).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ml_core.data.card_state import UNKNOWN
from ml_core.data.replay import Events, delayed_labels, hash_keys
from ml_core.errors import InputError

DAY_S = 86_400
REQUIRED = ("TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Transactions as columns in time order; `at` in whole seconds, `fraud` of bool, keys as the file has them."""

    id: npt.NDArray
    at: npt.NDArray[np.int64]
    card: npt.NDArray
    terminal: npt.NDArray
    cents: npt.NDArray[np.int64]
    fraud: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.at)

    @property
    def day(self) -> npt.NDArray[np.int64]:
        """Whole days since 1970-01-01."""
        return self.at // DAY_S


def read_table(path: Path) -> Table:
    """Read a parquet of the Handbook's raw form. Raises InputError naming what is missing."""
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from error
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}")
    frame = pq.read_table(path, columns=list(REQUIRED))
    columns = {name: frame.column(name).to_numpy(zero_copy_only=False) for name in REQUIRED}
    return table_from_columns(columns)


def table_from_columns(columns: dict[str, npt.NDArray]) -> Table:
    """Sort and type raw columns (the simulator's, or a file's)."""
    amount = np.asarray(columns["TX_AMOUNT"], np.float64)
    if not np.isfinite(amount).all():
        raise InputError("TX_AMOUNT holds values that are not finite")
    at = np.asarray(columns["TX_DATETIME"]).astype("datetime64[s]").astype(np.int64)
    key = _key_column(columns["TRANSACTION_ID"])
    order = np.lexsort((key, at))
    return Table(
        id=key[order],
        at=at[order],
        card=_key_column(columns["CUSTOMER_ID"])[order],
        terminal=_key_column(columns["TERMINAL_ID"])[order],
        cents=np.rint(amount * 100).astype(np.int64)[order],
        fraud=np.asarray(columns["TX_FRAUD"]).astype(bool)[order],
    )


def join(first: Table, second: Table) -> Table:
    """Two tables in sequence; the second must not begin before the first ends."""
    if len(first) and len(second) and second.at[0] < first.at[-1]:
        raise InputError("the test file begins before the history ends")
    return Table(**{n: np.concatenate([a, b]) for n, a, b in _pairs(first, second)})


def events_of(table: Table, *, labels: bool = True, delay_days: int = 7) -> Events:
    """The table as the replay takes it: labels become known `delay_days` late, or never."""
    cards, card = np.unique(table.card, return_inverse=True)
    terminals, terminal = np.unique(table.terminal, return_inverse=True)
    late = delayed_labels(table.fraud, at=table.at, delay_s=delay_days * DAY_S)
    known = late if labels else np.full(len(table), UNKNOWN, np.int64)
    return Events(
        at=table.at,
        offset=np.zeros(len(table), np.int64),
        cents=table.cents,
        card=card.astype(np.int64),
        terminal=terminal.astype(np.int64),
        card_key=hash_keys([str(key) for key in cards])[card],
        terminal_key=hash_keys([str(key) for key in terminals])[terminal],
        id_key=hash_keys([str(key) for key in table.id]),
        label_word=known,
    )


def fold(
    table: Table,
    *,
    first_day: date,
    train_days: int = 7,
    delay_days: int = 7,
    test_days: int = 7,
    train_from: date | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers of training and test, in time order.

    Training is `train_days` from `first_day` (longer with `train_from`), then a delay without labels, then the test
    days; on test day k every card with a fraud from `first_day` to k days after training's last day is left out.
    """
    day, epoch = table.day, date(1970, 1, 1)
    begin = (first_day - epoch).days
    end = begin + train_days
    oldest = begin if train_from is None else (train_from - epoch).days
    train = np.flatnonzero((day >= oldest) & (day < end))
    _, card = np.unique(table.card, return_inverse=True)
    kept = []
    for k in range(test_days):
        known = card[table.fraud & (day >= begin) & (day < end + k)]
        today = np.flatnonzero(day == end + delay_days + k)
        kept.append(today[~np.isin(card[today], known)])
    return train, np.concatenate(kept)


def card_precision(
    *, day: npt.NDArray, card: npt.NDArray, fraud: npt.NDArray, score: npt.NDArray, k: int = 100
) -> float:
    """Card Precision@k: the share of each day's k best cards with a fraud that day, cards caught before left out.

    A card's score is its highest of the day; equal scores stand in the order of the card's key.
    """
    _, card = np.unique(card, return_inverse=True)
    caught = np.zeros(card.max() + 1 if len(card) else 0, bool)
    per_day = []
    for today in np.unique(day):
        rows = np.flatnonzero((day == today) & ~caught[card])
        who, place = np.unique(card[rows], return_inverse=True)
        best, hit = np.full(len(who), -np.inf), np.zeros(len(who), bool)
        np.maximum.at(best, place, np.asarray(score, np.float64)[rows])
        np.logical_or.at(hit, place, np.asarray(fraud)[rows].astype(bool))
        top = np.argsort(-best, kind="stable")[:k]
        found = top[hit[top]]
        per_day.append(len(found) / k)
        caught[who[found]] = True
    return float(np.mean(per_day))


def protocol_scores(table: Table, rows: npt.NDArray[np.int64], score: npt.NDArray) -> dict[str, float]:
    """ROC-AUC, average precision and CP@100 of `score` on `rows`."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    fraud = table.fraud[rows]
    return {
        "auc": float(roc_auc_score(fraud, score)),
        "ap": float(average_precision_score(fraud, score)),
        "cp100": card_precision(day=table.day[rows], card=table.card[rows], fraud=fraud, score=score),
    }


def _key_column(values: npt.NDArray) -> npt.NDArray:
    """Keys as int64 where they are whole numbers, else as text."""
    values = np.asarray(values)
    return values.astype(np.int64) if values.dtype.kind in "iu" else values.astype(str)


def _pairs(first: Table, second: Table) -> Sequence[tuple[str, npt.NDArray, npt.NDArray]]:
    out = []
    for name in Table.__slots__:
        a, b = getattr(first, name), getattr(second, name)
        if a.dtype.kind != b.dtype.kind:
            a, b = a.astype(str), b.astype(str)
        out.append((name, a, b))
    return out
