"""Training on a bank's weeks as the Handbook's protocol names them: from one week's labels, or from all of the past.

A protocol is named by its first training day D. Labels of D .. D+6 are known when the test begins on D+14; "past" also
takes every earlier day's (Le Borgne et al., 2022; the long form is ours). Rows of the days before, and of the label
delay, may be had without their labels: a student learns there what its teacher answers.
"""

from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt

from ml_core.data.handbook import Table, fold
from ml_core.data.replay import hash_keys
from ml_core.errors import RunError
from ml_core.seed import numpy_generator
from ml_core.train.fraud_data import Samples, table_samples
from ml_core.train.fraud_stages import FraudTraining, Rows, table_digest

EPOCH = date(1970, 1, 1)
TRAIN_DAYS, DELAY_DAYS = 7, 7


@dataclass(frozen=True, kw_only=True, slots=True)
class WeekSplit:
    """Row numbers of a table in time order. No row is in two of them.

    train: labels are learnt from. guard: cards of their own, for calibration alone. unlabelled: inputs alone are used.
    weight (one a row of train) undoes the thinning of genuine rows.
    """

    train: npt.NDArray[np.int64]
    guard: npt.NDArray[np.int64]
    unlabelled: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]


def split_weeks(table: Table, training: FraudTraining, *, seed: int) -> WeekSplit:
    """Which rows of `table` the training takes, by its protocol and first day; later days are never touched.

    One card in `guard_of` is held back. Of "past" the first `warm_days` days only fill histories, and at most about
    `table_rows` genuine rows train. Raises RunError where the days hold fewer than 20 frauds or are not in the table.
    """
    day = table.day
    first = first_day_of(table, training)
    oldest = EPOCH + timedelta(days=int(day[0]) + training.warm_days)
    labelled, _ = fold(table, first_day=first, train_from=min(oldest, first) if training.protocol == "past" else None)
    if table.fraud[labelled].sum() < 20:
        raise RunError(f"first_day: the days up to {first + timedelta(days=TRAIN_DAYS - 1)} hold fewer than 20 frauds")
    held = _held_cards(table, guard_of=training.guard_of)[labelled]
    train, guard = labelled[~held], labelled[held]
    genuine = ~table.fraud[train]
    share = min(1.0, training.table_rows / max(1, int(genuine.sum())))
    kept = ~genuine | (numpy_generator(seed, "thin").random(len(train)) < share)
    train = train[kept]
    weight = np.where(table.fraud[train], 1.0, 1.0 / share).astype(np.float32)
    end = (first - EPOCH).days + TRAIN_DAYS + DELAY_DAYS
    others = np.flatnonzero((day >= day[0] + training.warm_days) & (day < end))
    others = np.setdiff1d(others, labelled, assume_unique=True)
    if len(others) > training.unlabelled_rows:
        rng = numpy_generator(seed, "unlabelled")
        others = np.sort(rng.choice(others, training.unlabelled_rows, replace=False))
    return WeekSplit(train=train, guard=guard, unlabelled=others, weight=weight)


def first_day_of(table: Table, training: FraudTraining) -> date:
    """The training's first day; unless it names one, that of the newest week whose labels the table's end knows."""
    if training.first_day:
        return date.fromisoformat(training.first_day)
    return EPOCH + timedelta(days=int(table.day[-1]) + 1 - TRAIN_DAYS - DELAY_DAYS)


def split_rows(samples: Samples, split: WeekSplit, *, digest: str, first: int = 0) -> Rows:
    """The split's rows out of the replayed `samples`, whose row 0 is the table's row `first`."""
    return Rows(
        train=replace(samples.take(split.train - first), weight=split.weight),
        guard=samples.take(split.guard - first),
        digest=digest,
        unlabelled=samples.take(split.unlabelled - first) if len(split.unlabelled) else None,
    )


def week_rows(training: FraudTraining, table: Table, *, seed: int) -> Rows:
    """Replay the table up to the last day that the protocol knows, and take the split's rows."""
    split = split_weeks(table, training, seed=seed)
    wanted = np.sort(np.concatenate([split.train, split.guard, split.unlabelled]))
    known = Table(**{name: getattr(table, name)[: wanted[-1] + 1] for name in Table.__slots__})
    keep = np.zeros(len(known), bool)
    keep[wanted] = True
    samples = table_samples(known, keep=keep, weight=np.ones(len(known), np.float32))
    places = {name: np.searchsorted(wanted, getattr(split, name)) for name in ("train", "guard", "unlabelled")}
    return split_rows(samples, replace(split, **places), digest=table_digest(known))


def _held_cards(table: Table, *, guard_of: int) -> npt.NDArray[np.bool_]:
    """True for the rows of one card in `guard_of`, by its key, so that every week holds the same cards back."""
    cards, card = np.unique(table.card, return_inverse=True)
    return (hash_keys([str(key) for key in cards]) % guard_of == 0)[card]
