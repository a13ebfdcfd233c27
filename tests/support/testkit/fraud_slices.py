"""Where a ranking of the Handbook's weeks wins and loses: by rule, by moment of the attack, by length of history.

Recall: a week's alerts are as many of its highest scores as it has frauds. False alarms: genuine rows above the score
that finds CAUGHT of a week's frauds; a quarter cannot be known, so that finding more would mean guessing.
The rule behind a fraud (TX_FRAUD_SCENARIO) slices results and never enters a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from ml_core.data.handbook import DAY_S, Table
from testkit.fraud_scores import DRAWS, RAW, ByFold

TERMINAL_DAYS, CARD_DAYS = 28, 14
CAUGHT = 0.7
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """What happened around every row of the table (n each), told from the labels' reasons.

    scenario: 0 genuine, 1 large amount, 2 terminal, 3 card. since_takeover and since_theft: days since the first fraud
    of the newest takeover of the row's terminal, and of the newest theft of its card (inf: none yet). thefts: the
    theft's earlier frauds. card_seen and terminal_seen: earlier transactions of the row's card and terminal.
    """

    scenario: npt.NDArray[np.int64]
    since_takeover: npt.NDArray[np.float64]
    since_theft: npt.NDArray[np.float64]
    thefts: npt.NDArray[np.int64]
    card_seen: npt.NDArray[np.int64]
    terminal_seen: npt.NDArray[np.int64]


def story_read(table: Table) -> Story:
    """The story of the Handbook's file, whose rows `table` must be, all of them."""
    import pyarrow.parquet as pq

    frame = pq.read_table(RAW, columns=["TRANSACTION_ID", "TX_FRAUD_SCENARIO"])
    ids = frame.column("TRANSACTION_ID").to_numpy()
    order = np.argsort(ids, kind="stable")
    place = order[np.searchsorted(ids[order], table.id)]
    if not np.array_equal(ids[place], table.id):
        raise ValueError("the table's rows are not those of the file")
    return story(table, scenario=frame.column("TX_FRAUD_SCENARIO").to_numpy()[place].astype(np.int64))


def story(table: Table, *, scenario: npt.NDArray[np.int64]) -> Story:
    """The story that `scenario` (n) tells."""
    since_takeover, _ = _episodes(table.at, table.terminal, scenario == 2, days=TERMINAL_DAYS)
    since_theft, thefts = _episodes(table.at, table.card, scenario == 3, days=CARD_DAYS)
    return Story(
        scenario=scenario,
        since_takeover=since_takeover,
        since_theft=since_theft,
        thefts=thefts,
        card_seen=_seen(table.card),
        terminal_seen=_seen(table.terminal),
    )


def fraud_slices(story: Story) -> dict[str, Mask]:
    """Slices of frauds: of each, the share that is among the alerts is asked for."""
    two, three = story.scenario == 2, story.scenario == 3
    days = np.floor(story.since_takeover)
    return {
        "rule 1, large amount": story.scenario == 1,
        "rule 2, terminal": two,
        "rule 3, card": three,
        "terminal, day 0–6 of its frauds (no label yet)": two & (days < 7),
        "terminal, day 7–8": two & (days >= 7) & (days < 9),
        "terminal, day 9–13": two & (days >= 9) & (days < 14),
        "terminal, day 14–27": two & (days >= 14),
        "card, first fraud of the theft": three & (story.thefts == 0),
        "card, second fraud": three & (story.thefts == 1),
        "card, third and later": three & (story.thefts >= 2),
        **{f"rule 3, {name}": three & mask for name, mask in _card_lengths(story).items()},
        **{f"rule 2, {name}": two & mask for name, mask in _terminal_lengths(story).items()},
    }


def row_slices(story: Story) -> dict[str, Mask]:
    """Slices of all rows, genuine and not: of each, AP is asked for."""
    genuine = story.scenario == 0
    by_rule = {f"rule {rule} against genuine rows": genuine | (story.scenario == rule) for rule in (1, 2, 3)}
    return {**by_rule, **_card_lengths(story), **_terminal_lengths(story)}


def false_alarm_causes(story: Story, *, cents: npt.NDArray[np.int64]) -> dict[str, Mask]:
    """Genuine rows by what may mislead a ranking; each row has one cause."""
    genuine = story.scenario == 0
    ended = genuine & (story.since_takeover <= TERMINAL_DAYS + 8)
    stolen = genuine & ~ended & (story.since_theft <= CARD_DAYS + 8)
    large = genuine & ~ended & ~stolen & (cents >= 18_000)
    return {
        "terminal whose takeover is over, its newest labels still fraud": ended,
        "card during its theft or in the week after": stolen,
        "amount of 180 to 220": large,
        "none of these": genuine & ~ended & ~stolen & ~large,
    }


def alerts(fraud: npt.NDArray[Any], score: npt.NDArray[Any]) -> Mask:
    """The highest scores, as many as there are frauds (ties in the order of the rows)."""
    out = np.zeros(len(fraud), bool)
    out[np.argsort(-np.asarray(score, np.float64), kind="stable")[: int(np.sum(fraud))]] = True
    return out


def false_alarms(fraud: npt.NDArray[Any], score: npt.NDArray[Any]) -> Mask:
    """Genuine rows that score as high as the fraud with which CAUGHT of all are found."""
    fraud, score = np.asarray(fraud, bool), np.asarray(score, np.float64)
    ranked = np.sort(score[fraud])[::-1]
    return ~fraud & (score >= ranked[int(np.ceil(CAUGHT * len(ranked))) - 1])


def slice_rows(
    table: Table, story: Story, *, tests: ByFold, scores: ByFold, folds: Sequence[str], system: str
) -> list[dict[str, Any]]:
    """Rows of a result file: recall of each slice of frauds, AP of each slice of rows, false alarms by cause.

    A slice without frauds in one of the weeks is left out.
    """
    rows = np.concatenate([tests[first] for first in folds])
    raised = np.concatenate([alerts(table.fraud[tests[first]], scores[first]) for first in folds])
    false = np.concatenate([false_alarms(table.fraud[tests[first]], scores[first]) for first in folds])
    day = table.day[rows]
    out = []
    for name, mask in fraud_slices(story).items():
        if mask[rows].any():
            value = _by_day(raised & mask[rows], day, of=mask[rows])
            out.append(_row(name, system, "recall", value, unit="1", n=int(mask[rows].sum())))
    for name, mask in false_alarm_causes(story, cents=table.cents).items():
        value = _by_day(false & mask[rows], day, of=None)
        out.append(_row(name, system, "false alarms", value, unit="1/week", n=int((false & mask[rows]).sum())))
    for name, mask in row_slices(story).items():
        if all(table.fraud[tests[first]][mask[tests[first]]].any() for first in folds):
            out.append(_ap_row(table, name, mask, tests=tests, scores=scores, folds=folds, system=system))
    return out


def _by_day(hit: Mask, day: npt.NDArray[np.int64], *, of: Mask | None) -> tuple[float, float, float]:
    """hit / of, or hits a week where `of` is None, with a 95% bootstrap over days: value, low, high."""
    days, number = np.unique(day, return_inverse=True)
    hits = np.bincount(number, hit)
    totals = np.full(len(days), 1 / 7) if of is None else np.bincount(number, of)
    picks = np.random.default_rng(0).integers(0, len(days), (DRAWS, len(days)))
    drawn = totals[picks].sum(1)
    low, high = np.percentile((hits[picks].sum(1)[drawn > 0] / drawn[drawn > 0]), [2.5, 97.5])
    return float(hits.sum() / totals.sum()), float(low), float(high)


def _row(
    name: str, system: str, metric: str, value: tuple[float, float, float], *, unit: str, n: int
) -> dict[str, Any]:
    return {
        "case": f"slice: {name}", "system": system, "metric": metric, "value": value[0], "unit": unit,
        "low": value[1], "high": value[2], "n": n,
    }  # fmt: skip


def _ap_row(
    table: Table, name: str, mask: Mask, *, tests: ByFold, scores: ByFold, folds: Sequence[str], system: str
) -> dict[str, Any]:
    """AP within a slice: mean over weeks, low and high the weeks' extremes; n counts its frauds."""
    values, n = [], 0
    for first in folds:
        inside = mask[tests[first]]
        fraud = table.fraud[tests[first]][inside]
        n += int(fraud.sum())
        values.append(float(average_precision_score(fraud, np.asarray(scores[first])[inside])))
    return _row(name, system, "ap", (float(np.mean(values)), min(values), max(values)), unit="1", n=n)


def _episodes(
    at: npt.NDArray[np.int64], entity: npt.NDArray[Any], fraud: Mask, *, days: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Days since the entity's newest episode began, and how many of its frauds came before; an episode lasts `days`."""
    since, before = np.full(len(at), np.inf), np.zeros(len(at), np.int64)
    began: dict[Any, int] = {}
    count: dict[Any, int] = {}
    hit = set(entity[fraud].tolist())
    for row in np.flatnonzero(np.isin(entity, list(hit))):
        key, now = entity[row], int(at[row])
        if fraud[row] and (key not in began or now - began[key] >= days * DAY_S):
            began[key], count[key] = now, 0
        if key in began:
            since[row], before[row] = (now - began[key]) / DAY_S, count[key]
            count[key] += bool(fraud[row])
    return since, before


def _seen(entity: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """How many earlier rows have the same entity."""
    _, number = np.unique(entity, return_inverse=True)
    order = np.argsort(number, kind="stable")
    begins = np.concatenate([[0], np.cumsum(np.bincount(number))])[:-1]
    out = np.zeros(len(entity), np.int64)
    out[order] = np.arange(len(entity)) - begins[number[order]]
    return out


def _card_lengths(story: Story) -> Mapping[str, Mask]:
    seen = story.card_seen
    return {
        "card with fewer than 150 earlier transactions": seen < 150,
        "card with 150–299": (seen >= 150) & (seen < 300),
        "card with 300–449": (seen >= 300) & (seen < 450),
        "card with 450 or more": seen >= 450,
    }


def _terminal_lengths(story: Story) -> Mapping[str, Mask]:
    seen = story.terminal_seen
    return {
        "terminal with fewer than 110 earlier transactions": seen < 110,
        "terminal with 110–139": (seen >= 110) & (seen < 140),
        "terminal with 140–169": (seen >= 140) & (seen < 170),
        "terminal with 170 or more": seen >= 170,
    }
