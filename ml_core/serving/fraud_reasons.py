"""Why a transaction scored as it did: exact Shapley values over groups of inputs, in words, and what would lower it.

The value of a set of groups is the served probability with every other group replaced by an ordinary genuine
transaction's (the model's reference buffers). All 2^6 sets are evaluated, so the shares and the base sum to the score
(Shapley, 1953; Lundberg and Lee, 2017, interventional form with one baseline).
"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch

from ml_core.contracts import Counterfactual, Reason, Score, Transaction
from ml_core.data.fraud_features import CARD, CHANNELS, FEATURES, TERMINAL
from ml_core.data.replay import Inputs
from ml_core.models.fraud_student import FraudStudent

GROUPS = ("amount", "card_history", "card_rhythm", "card_labels", "terminal_labels", "terminal_activity")
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
_LABEL_CHANNELS = ("fraud", "genuine")
_AMOUNT_CHANNELS = ("log_amount", "log_now_over_then", "log_ratio")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One transaction's inputs as the model reads them, with its facts by name."""

    features: npt.NDArray[np.float32]
    card: npt.NDArray[np.float32]
    terminal: npt.NDArray[np.float32]

    @property
    def facts(self) -> dict[str, float]:
        return {name: float(value) for name, value in zip(FEATURES, self.features, strict=True)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Inputs of n variants of one transaction: (n, f), (n, k, c), (n, m, c)."""

    features: npt.NDArray[np.float32]
    card: npt.NDArray[np.float32]
    terminal: npt.NDArray[np.float32]


def explain(
    model: FraudStudent, inputs: Inputs, i: int, *, transaction: Transaction, probability: float, threshold: float
) -> Score:
    """Row i's score with reasons (largest first), counterfactuals below `threshold` and the feature snapshot."""
    row = _row(model, features=inputs.features[i], card=inputs.card[i], terminal=inputs.terminal[i])
    base, points = shapley(model, row)
    facts = row.facts
    texts = _texts(facts, transaction=transaction)
    reasons = sorted(
        (Reason(feature=g, text=texts[g], points=float(points[k])) for k, g in enumerate(GROUPS)),
        key=lambda reason: -abs(reason.points),
    )
    return Score(
        transaction_id=transaction.id,
        probability=probability,
        base_points=base,
        reasons=tuple(reasons),
        counterfactuals=_counterfactuals(model, row, transaction=transaction, threshold=threshold),
        features={name: round(value, 6) for name, value in facts.items()},
    )


def shapley(model: FraudStudent, row: _Row) -> tuple[float, npt.NDArray[np.float64]]:
    """(points of the baseline, points of each group); together they are 100 times the probability."""
    value = 100.0 * _values(model, _mixed(model, row, kept=_SUBSETS))
    return float(value[0]), _WEIGHTS @ value


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


_SUBSETS = (np.arange(2 ** len(GROUPS))[:, None] >> np.arange(len(GROUPS))) % 2 == 1  # row s: the groups in subset s
_WEIGHTS = _shapley_weights(len(GROUPS))
_FEATURE_GROUP = np.array([GROUPS.index(group_of_feature(name)) for name in FEATURES])
_CARD_GROUP = np.array([GROUPS.index(_group_of_channel(name, card=True)) for name in CHANNELS])
_TERMINAL_GROUP = np.array([GROUPS.index(_group_of_channel(name, card=False)) for name in CHANNELS])


def _row(model: FraudStudent, *, features: np.ndarray, card: np.ndarray, terminal: np.ndarray) -> _Row:
    config = model.config
    return _Row(features=features, card=card[: config.card_tokens], terminal=terminal[: config.terminal_tokens])


def _mixed(model: FraudStudent, row: _Row, *, kept: npt.NDArray[np.bool_]) -> _Rows:
    """For each row of `kept` (n, groups) the transaction with the groups kept there, the reference elsewhere."""
    return _Rows(
        features=np.where(kept[:, _FEATURE_GROUP], row.features, model.reference_features.numpy()),
        card=np.where(kept[:, None, _CARD_GROUP], row.card, model.reference_card.numpy()),
        terminal=np.where(kept[:, None, _TERMINAL_GROUP], row.terminal, model.reference_terminal.numpy()),
    )


def _values(model: FraudStudent, rows: _Rows) -> npt.NDArray[np.float64]:
    """Probabilities of rows."""
    arrays = (np.ascontiguousarray(array, np.float32) for array in (rows.features, rows.card, rows.terminal))
    with torch.inference_mode():
        logits = model(*(torch.from_numpy(array) for array in arrays))
        return torch.sigmoid(model.calibrated(logits).double()).numpy()


def _counterfactuals(
    model: FraudStudent, row: _Row, *, transaction: Transaction, threshold: float
) -> tuple[Counterfactual, ...]:
    """The largest lower amount that stays below the threshold, and the same transaction at a clean terminal."""
    out = []
    cents = _amount_below(model, row, cents=transaction.amount_cents, threshold=threshold)
    if cents is not None:
        text = f"At {_money(cents, transaction.currency)} or less, all else equal, it would not have been raised."
        out.append(Counterfactual(feature="amount", text=text))
    clean = np.array([[name != "terminal_labels" for name in GROUPS]])
    probability = float(_values(model, _mixed(model, row, kept=clean))[0])
    if probability < threshold and row.facts["fraud_28d"] > 0:
        text = f"With an ordinary label history of the terminal its score would have been {100 * probability:.0f}."
        out.append(Counterfactual(feature="terminal_labels", text=text))
    return tuple(out)


def _amount_below(model: FraudStudent, row: _Row, *, cents: int, threshold: float) -> int | None:
    """Search a falling grid from 98% of the amount to 2% (never below one unit), then refine between two steps."""
    low, high = max(100, cents // 50), int(cents * 0.98)
    for _ in range(_REFINEMENTS):
        if high <= low:
            return None
        grid = np.unique(np.geomspace(low, high, _GRID).astype(np.int64))[::-1]
        value = _values(model, _with_amounts(row, cents=grid, before=cents))
        below = np.flatnonzero(value < threshold)
        if not len(below):
            return None
        best = int(below[0])
        low, high = int(grid[best]), int(grid[max(0, best - 1)])
        if best == 0:
            break
    return low


def _with_amounts(row: _Row, *, cents: npt.NDArray[np.int64], before: int) -> _Rows:
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
    return _Rows(features=features, card=card, terminal=terminal)


def _texts(facts: dict[str, float], *, transaction: Transaction) -> dict[str, str]:
    """One sentence a group, from the facts that the group holds."""
    return {
        "amount": f"The amount is {_money(transaction.amount_cents, transaction.currency)}.",
        "card_history": _history_text(facts),
        "card_rhythm": _rhythm_text(facts),
        "card_labels": _card_label_text(facts),
        "terminal_labels": _terminal_label_text(facts),
        "terminal_activity": (
            f"This terminal has {facts['unlabelled']:.0f} transactions not yet labelled, "
            f"{facts['unlabelled_odd']:.0f} of them unusually large for their card; "
            f"this card was here {facts['terminal_visits']:.0f} times before."
        ),
    }


def _history_text(facts: dict[str, float]) -> str:
    if facts["card_total"] == 0:
        return "This is the card's first transaction: there is no history to compare with."
    text = f"The amount is {facts['ratio_median']:.1f} × this card's usual {facts['card_median']:.2f}"
    odd = round(facts["odd_7d"])
    return text + (f"; {odd} other unusually large amounts in 7 days." if odd else ".")


def _rhythm_text(facts: dict[str, float]) -> str:
    hour = facts["hour"]
    clock = f"{int(hour):02d}:{int(hour % 1 * 60):02d} local time"
    if facts["card_total"] == 0:
        return f"{clock}; the card's first transaction."
    usual = facts["card_count_7d"] / 7
    return (
        f"{clock}; {facts['card_count_1d']:.0f} transactions of this card in 24 hours ({usual:.1f} a day over 7 days), "
        f"{_span(facts['gap_days'])} after the one before."
    )


def _card_label_text(facts: dict[str, float]) -> str:
    known = round(facts["card_fraud_35d"])
    if not known:
        return "No known fraud with this card in 35 days."
    return f"{known} known frauds with this card in 35 days, the last {facts['since_card_fraud']:.0f} days ago."


def _terminal_label_text(facts: dict[str, float]) -> str:
    known, fraud = round(facts["known_7d"]), round(facts["fraud_7d"])
    older = round(facts["fraud_28d"])
    if known:
        return f"{fraud} of {known} known transactions at this terminal, 7 to 14 days ago, were fraud."
    return f"{older} known frauds at this terminal, 7 to 35 days ago." if older else "No known fraud at this terminal."


def _money(cents: int, currency: str) -> str:
    return f"{cents / 100:,.2f} {currency}".replace(",", " ")


def _span(days: float) -> str:
    minutes = days * 1_440
    if minutes < 90:
        return f"{minutes:.0f} minutes"
    return f"{minutes / 60:.0f} hours" if days < 2 else f"{days:.0f} days"
