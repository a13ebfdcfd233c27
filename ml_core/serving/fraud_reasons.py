"""Why a transaction scored as it did: exact Shapley values over groups of inputs, in words, and what would lower it.

The value of a set of groups is the served probability with every other group replaced by an ordinary genuine
transaction's (the model's reference buffers). All 2^6 sets are evaluated, so the shares and the base sum to the score
(Shapley, 1953; Lundberg and Lee, 2017, interventional form with one baseline).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ml_core.contracts import Counterfactual, Reason, Score, Transaction
from ml_core.data.fraud_features import CARD, CHANNELS, FEATURES, TERMINAL
from ml_core.data.replay import Inputs
from ml_core.models.fraud_student import FraudStudent

GROUPS = ("amount", "card_history", "card_rhythm", "card_labels", "terminal_labels", "terminal_activity")
DETAILS = "details"  # the further inputs of a declared mapping: one group more, where a model reads any
_HISTORY = (
    "ratio_median", "ratio_mean", "ratio_max", "z_amount", "rank_amount", "card_median", "card_spread", "second_ratio",
    "card_mean_1d", "card_mean_7d", "card_mean_30d", "odd_1d", "odd_3d", "odd_7d", "odd_14d", "very_odd_7d",
    "very_odd_14d", "max_ratio_1d", "max_ratio_7d", "max_ratio_14d", "share_odd_7d", "share_odd_14d", "excess_14d",
    "since_odd",
)  # fmt: skip
_CARD_LABELS = (
    "card_fraud_14d", "card_fraud_35d", "card_plain_fraud_35d", "card_odd_fraud_35d", "since_card_fraud",
    "since_card_genuine",
)  # fmt: skip
_ACTIVITY = (
    "terminal_count_1d", "terminal_count_7d", "terminal_count_30d", "unlabelled", "unlabelled_ratio",
    "unlabelled_odd", "terminal_total", "terminal_gap_days", "terminal_visits",
)  # fmt: skip
_GRID, _REFINEMENTS = 9, 3  # amounts tried at once, times: the answer is within 1% of the largest that passes
_NO_FRAUD_HERE = "No known fraud at this terminal."
_TOGETHER = 64  # rows whose variants are stacked: 4,096 rows of inputs
_LABEL_CHANNELS = ("fraud", "genuine")
_AMOUNT_CHANNELS = ("log_amount", "log_now_over_then", "log_ratio")


Evaluate = Callable[[Inputs], npt.NDArray[np.float64]]  # served probabilities, not rounded


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One transaction's inputs as the model reads them, with its facts by name."""

    features: npt.NDArray[np.float32]
    card: npt.NDArray[np.float32]
    terminal: npt.NDArray[np.float32]

    @property
    def facts(self) -> dict[str, float]:
        return {name: float(value) for name, value in zip(FEATURES, self.features[: len(FEATURES)], strict=True)}


def explain(
    model: FraudStudent,
    inputs: Inputs,
    chosen: Sequence[int],
    *,
    transactions: Sequence[Transaction],
    probability: npt.NDArray[np.float64],
    threshold: float,
    evaluate: Evaluate,
) -> list[Score]:
    """Scores of the rows `chosen`, with reasons (largest first), counterfactuals below `threshold`, the features.

    Variants of many rows go through `evaluate` together; a row's answer does not depend on the others.
    """
    scores: list[Score] = []
    for begin in range(0, len(chosen), _TOGETHER):
        part = chosen[begin : begin + _TOGETHER]
        rows = [_row(model, inputs, i) for i in part]
        shares = shapley(model, rows, evaluate=evaluate)
        changes = _counterfactuals(
            model, rows, transactions=[transactions[i] for i in part], threshold=threshold, evaluate=evaluate
        )
        scores += [
            _score(row, transactions[i], probability=float(probability[i]), shares=share, changes=change)
            for i, row, share, change in zip(part, rows, shares, changes, strict=True)
        ]
    return scores


def shapley(
    model: FraudStudent, rows: Sequence[_Row], *, evaluate: Evaluate
) -> list[tuple[float, npt.NDArray[np.float64]]]:
    """A row's (points of the baseline, points of each group); together they are 100 times its probability."""
    count = len(groups_of(model))
    subsets, weights = _subsets(count), _shapley_weights(count)
    values = 100.0 * evaluate(_stack([_mixed(model, row, kept=subsets) for row in rows]))
    return [(float(value[0]), weights @ value) for value in values.reshape(len(rows), -1)]


def groups_of(model: FraudStudent) -> tuple[str, ...]:
    """The groups of what a model reads: DETAILS is one where it reads more than the features."""
    return (*GROUPS, DETAILS) if len(model.reference_features) > len(FEATURES) else GROUPS


def group_of_feature(name: str) -> str:
    """The group that a feature belongs to."""
    if name == "amount":
        return "amount"
    if name in _HISTORY:
        return "card_history"
    if name in _CARD_LABELS:
        return "card_labels"
    if name in _ACTIVITY:
        return "terminal_activity"
    if name in TERMINAL or name.startswith("terminal_risk"):
        return "terminal_labels"
    if name in CARD or name in ("weekend", "night", "hour") or name.startswith("card_count"):
        return "card_rhythm"
    raise ValueError(f"feature {name} has no group")


def _group_of_channel(name: str, *, card: bool) -> str:
    if name in _LABEL_CHANNELS:
        return "card_labels" if card else "terminal_labels"
    if not card:
        return "card_history" if name == "log_now_over_then" else "terminal_activity"
    return "card_history" if name in _AMOUNT_CHANNELS else "card_rhythm"


@cache
def _subsets(count: int) -> npt.NDArray[np.bool_]:
    """Row s: the groups in subset s, numbered by its bits."""
    return (np.arange(2**count)[:, None] >> np.arange(count)) % 2 == 1


@cache
def _shapley_weights(count: int) -> npt.NDArray[np.float64]:
    """Row k times the values of all subsets, numbered by their bits, is the Shapley value of group k."""
    weights = np.zeros((count, 2**count))
    for k in range(count):
        others = [j for j in range(count) if j != k]
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for chosen in combinations(others, size):
                subset = sum(1 << j for j in chosen)
                weights[k, subset | 1 << k] += weight
                weights[k, subset] -= weight
    return weights


_FEATURE_GROUP = np.array([GROUPS.index(group_of_feature(name)) for name in FEATURES])
_CARD_GROUP = np.array([GROUPS.index(_group_of_channel(name, card=True)) for name in CHANNELS])
_TERMINAL_GROUP = np.array([GROUPS.index(_group_of_channel(name, card=False)) for name in CHANNELS])


def _row(model: FraudStudent, inputs: Inputs, i: int) -> _Row:
    config = model.config
    return _Row(
        features=inputs.features[i],
        card=inputs.card[i, : config.card_tokens],
        terminal=inputs.terminal[i, : config.terminal_tokens],
    )


def _score(
    row: _Row,
    transaction: Transaction,
    *,
    probability: float,
    shares: tuple[float, npt.NDArray[np.float64]],
    changes: list[Counterfactual],
) -> Score:
    base, points = shares
    facts = row.facts
    texts = _texts(facts, transaction=transaction)
    # texts come in the order of the groups; the last one has no points where the model reads no further inputs
    reasons = (Reason(feature=g, text=texts[g], points=float(p)) for g, p in zip(texts, points, strict=False))
    return Score(
        transaction_id=transaction.id,
        probability=probability,
        base_points=base,
        reasons=tuple(sorted(reasons, key=lambda reason: -abs(reason.points))),
        counterfactuals=tuple(changes),
        features={name: round(value, 6) for name, value in facts.items()},
    )


def _stack(parts: Sequence[Inputs]) -> Inputs:
    return Inputs(
        features=np.concatenate([part.features for part in parts]),
        card=np.concatenate([part.card for part in parts]),
        terminal=np.concatenate([part.terminal for part in parts]),
    )


def _mixed(model: FraudStudent, row: _Row, *, kept: npt.NDArray[np.bool_]) -> Inputs:
    """For each row of `kept` (n, groups) the transaction with the groups kept there, the reference elsewhere."""
    further = np.full(len(row.features) - len(FEATURES), len(GROUPS))
    group = np.concatenate([_FEATURE_GROUP, further])
    return Inputs(
        features=np.where(kept[:, group], row.features, model.reference_features.numpy()),
        card=np.where(kept[:, None, _CARD_GROUP], row.card, model.reference_card.numpy()),
        terminal=np.where(kept[:, None, _TERMINAL_GROUP], row.terminal, model.reference_terminal.numpy()),
    )


def _counterfactuals(
    model: FraudStudent,
    rows: Sequence[_Row],
    *,
    transactions: Sequence[Transaction],
    threshold: float,
    evaluate: Evaluate,
) -> list[list[Counterfactual]]:
    """Of each row the largest lower amount that stays below the threshold, and the same at a clean terminal."""
    amounts = _amounts_below(rows, cents=[t.amount_cents for t in transactions], threshold=threshold, evaluate=evaluate)
    clean = np.array([[name != "terminal_labels" for name in groups_of(model)]])
    cleaned = evaluate(_stack([_mixed(model, row, kept=clean) for row in rows]))
    found: list[list[Counterfactual]] = [[] for _ in rows]
    for changes, row, transaction, cents, probability in zip(found, rows, transactions, amounts, cleaned, strict=True):
        if cents is not None:
            text = f"At {_money(cents, transaction.currency)} or less, all else equal, it would not have been raised."
            changes.append(Counterfactual(feature="amount", text=text))
        if probability < threshold and row.facts["fraud_28d"] > 0:
            text = f"With an ordinary label history of the terminal its score would have been {100 * probability:.0f}."
            changes.append(Counterfactual(feature="terminal_labels", text=text))
    return found


def _amounts_below(
    rows: Sequence[_Row], *, cents: Sequence[int], threshold: float, evaluate: Evaluate
) -> list[int | None]:
    """Search falling grids from 98% of each amount to 2% (never below one unit), then refine between two steps."""
    found: list[int | None] = [None] * len(rows)
    ends = {i: (max(100, each // 50), int(each * 0.98)) for i, each in enumerate(cents)}
    for _ in range(_REFINEMENTS):
        ends = {i: (low, high) for i, (low, high) in ends.items() if high > low}
        if not ends:
            break
        grids = {i: np.unique(np.geomspace(*each, _GRID).astype(np.int64))[::-1] for i, each in ends.items()}
        value = evaluate(_stack([_with_amounts(rows[i], cents=grid, before=cents[i]) for i, grid in grids.items()]))
        for i, grid in grids.items():
            below, value = np.flatnonzero(value[: len(grid)] < threshold), value[len(grid) :]
            if not len(below):
                del ends[i]
                continue
            best = int(below[0])
            found[i] = int(grid[best])
            ends[i] = (int(grid[best]), int(grid[max(0, best - 1)]))
    return found


def _with_amounts(row: _Row, *, cents: npt.NDArray[np.int64], before: int) -> Inputs:
    """The row as it would be with other amounts; the rank is taken among the events that the model reads."""
    facts = row.facts
    factor = np.maximum(cents, 1) / max(before, 1)
    n = facts["card_total"]
    total = max(before, 1) * (n + 2) / max(facts["ratio_mean"], 1e-9) - 10_000.0
    spread = max(facts["card_spread"] * max(total / max(n, 1), 100.0), 100.0)
    columns: dict[str, npt.NDArray[np.float64]] = {"amount": cents / 100}
    for name in ("ratio_median", "ratio_mean", "ratio_max"):
        columns[name] = facts[name] * factor
    columns["z_amount"] = facts["z_amount"] + (cents - before) / spread
    columns["second_ratio"] = np.minimum(columns["ratio_median"], facts["max_ratio_14d"])
    for days in (1, 7, 30):
        mean, count = facts[f"card_mean_{days}d"], facts[f"card_count_{days}d"]
        columns[f"card_mean_{days}d"] = mean + (cents - before) / (100 * count)
    present = row.card[:, 0] > 0
    then = 2.0 ** (row.card[present, 1] * 3.0 + 12.0)
    columns["rank_amount"] = (then[None] >= cents[:, None]).sum(1) / (present.sum() + 1)
    features = np.repeat(row.features[None], len(cents), 0)
    for name, values in columns.items():
        features[:, FEATURES.index(name)] = values
    shift = (np.log2(factor) / 2.0).astype(np.float32)[:, None]
    card, terminal = (np.repeat(tokens[None], len(cents), 0) for tokens in (row.card, row.terminal))
    card[:, :, 2] += shift * card[:, :, 0]
    terminal[:, :, 2] += shift * terminal[:, :, 0]
    return Inputs(features=features, card=card, terminal=terminal)


def _texts(facts: dict[str, float], *, transaction: Transaction) -> dict[str, str]:
    """One sentence a group, from the facts that the group holds."""
    return {
        "amount": f"The amount is {_money(transaction.amount_cents, transaction.currency)}.",
        "card_history": _history_text(facts),
        "card_rhythm": _rhythm_text(facts),
        "card_labels": _card_label_text(facts),
        "terminal_labels": _terminal_label_text(facts),
        "terminal_activity": (
            f"This terminal has {_count(facts['unlabelled'], 'transaction')} not yet labelled, "
            f"{facts['unlabelled_odd']:.0f} of them unusually large for their card; "
            f"this card was here {_count(facts['terminal_visits'], 'time')} before."
        ),
        DETAILS: _details_text(transaction),
    }


def _history_text(facts: dict[str, float]) -> str:
    if facts["card_total"] == 0:
        return "This is the card's first transaction: there is no history to compare with."
    text = f"The amount is {facts['ratio_median']:.1f} × this card's usual {facts['card_median']:.2f}"
    odd = round(facts["odd_7d"])
    return text + (f"; {_count(odd, 'other unusually large amount')} in 7 days." if odd else ".")


def _rhythm_text(facts: dict[str, float]) -> str:
    hour = facts["hour"]
    clock = f"{int(hour):02d}:{int(hour % 1 * 60):02d} local time"
    if facts["card_total"] == 0:
        return f"{clock}; the card's first transaction."
    usual = facts["card_count_7d"] / 7
    return (
        f"{clock}; {_count(facts['card_count_1d'], 'transaction')} of this card in 24 hours "
        f"({usual:.1f} a day over 7 days), "
        f"{_span(facts['gap_days'])} after the one before."
    )


def _card_label_text(facts: dict[str, float]) -> str:
    known = round(facts["card_fraud_35d"])
    if not known:
        return "No known fraud with this card in 35 days."
    last = _count(facts["since_card_fraud"], "day")
    return f"{_count(known, 'known fraud')} with this card in 35 days, the last {last} ago."


def _terminal_label_text(facts: dict[str, float]) -> str:
    known, fraud = round(facts["known_7d"]), round(facts["fraud_7d"])
    older = round(facts["fraud_28d"])
    if known:
        verb = "was" if fraud == 1 else "were"
        return f"{fraud} of {_count(known, 'known transaction')} at this terminal, 7 to 14 days ago, {verb} fraud."
    return f"{_count(older, 'known fraud')} at this terminal, 7 to 35 days ago." if older else _NO_FRAUD_HERE


def _details_text(transaction: Transaction) -> str:
    told = ", ".join(f"{name} {value}" for name, value in transaction.extras.items() if value is not None)
    return f"Further details: {told}." if told else "No further details."


def _money(cents: int, currency: str) -> str:
    return f"{cents / 100:,.2f} {currency}".replace(",", " ")


def _span(days: float) -> str:
    minutes = days * 1_440
    if minutes < 90:
        return _count(minutes, "minute")
    return _count(minutes / 60, "hour") if days < 2 else _count(days, "day")


def _count(number: float, noun: str) -> str:
    """`1 day`, `2 days`."""
    whole = round(number)
    return f"{whole} {noun}" if whole == 1 else f"{whole} {noun}s"
