"""The ceiling of the Handbook's weeks: what a filter that knows the simulator's three rules can say of a transaction.

It knows the rules and their rates (Le Borgne et al., Fraud Detection Handbook, 2022, chapter 3), sees every earlier
transaction and each label 7 days late; it sees neither the simulator's draws nor which rule made a fraud. What ranks
better than this on four weeks has either seen a label too early or was lucky.
"""

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit
from testkit.fraud_scores import CASES, RAW, TEST_FOLDS, figures, test_rows

from ml_core.data.handbook import DAY_S, Table, read_table

LARGE = 220.0  # rule 1: every larger amount is fraud
TERMINAL_DAYS, TERMINAL_RATE = 28, 2 / 10_000  # rule 2: two of 10,000 terminals a day, all they take for 28 days
CARD_DAYS, CARD_RATE = 14, 3 / 5_000  # rule 3: three of 5,000 cards a day, for 14 days
CARD_SHARE, CARD_FACTOR = 1 / 3, 5.0  # a third of a stolen card's transactions, times five
MEANS = np.linspace(5.0, 100.0, 96)  # a card's mean amount is drawn uniformly between 5 and 100
_FREE = 0  # a belief is (free, first day, second day, ...)


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleBeliefs:
    """Probabilities (n) that a row is fraud by rule 1, 2, 3, each alone, and by any of them."""

    large: npt.NDArray[np.float64]
    terminal: npt.NDArray[np.float64]
    card: npt.NDArray[np.float64]

    @property
    def fraud(self) -> npt.NDArray[np.float64]:
        """The three rules draw independently."""
        return 1 - (1 - self.large) * (1 - self.terminal) * (1 - self.card)


def main() -> int:
    """Print the ceiling's AUC, AP and CP@100 on the test weeks as one line of JSON."""
    table = read_table(RAW)
    fraud = rule_beliefs(table).fraud
    tests = test_rows(table, TEST_FOLDS)
    scores = {first: fraud[test] for first, test in tests.items()}
    rows = []
    for case, folds in CASES.items():
        rows += figures(table, tests=tests, scores=scores, folds=folds).rows(case=case, system="ceiling")
    print(json.dumps(rows))
    return 0


def rule_beliefs(table: Table, *, delay_days: int = 7) -> RuleBeliefs:
    """The filter's answer for every row of a table in the published simulator's form (amounts in units of LARGE)."""
    _, card = np.unique(table.card, return_inverse=True)
    _, terminal = np.unique(table.terminal, return_inverse=True)
    units = table.cents / 100.0
    plain, multiplied = np.zeros(len(table)), np.zeros(len(table))
    card_list, terminal_list = _by_entity(card), _by_entity(terminal)
    _densities(*card_list, units, MEANS, plain, multiplied)
    by_terminal, by_card = np.zeros(len(table)), np.zeros(len(table))
    _filter(
        (table.at, card, terminal, units > LARGE, table.fraud),
        (plain, multiplied),
        card_list,
        terminal_list,
        delay_days * DAY_S,
        (by_terminal, by_card),
    )
    return RuleBeliefs(large=(units > LARGE).astype(np.float64), terminal=by_terminal, card=by_card)


def _by_entity(entity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows sorted by entity, in time order within, and where each entity's begin (one more: the end)."""
    return np.argsort(entity, kind="stable"), np.concatenate([[0], np.cumsum(np.bincount(entity))])


@njit(cache=True)
def _density(amount: float, mean: float) -> float:
    """Of an ordinary amount: normal around the mean, half of it wide; a negative draw becomes uniform up to twice."""
    width = 0.5 * mean
    normal = np.exp(-0.5 * ((amount - mean) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    uniform = 0.0227501 / (2 * mean) if amount <= 2 * mean else 0.0
    return normal + uniform + 1e-12


@njit(cache=True)
def _densities(
    order: np.ndarray, begins: np.ndarray, units: np.ndarray, means: np.ndarray, plain: np.ndarray, times: np.ndarray
) -> None:
    """Density of every amount as an ordinary one and as a multiplied one, the card's mean learnt from its past."""
    multiplied_share = CARD_RATE * CARD_DAYS * CARD_SHARE
    for card in range(len(begins) - 1):
        weight = np.full(len(means), 1.0 / len(means))
        for place in range(begins[card], begins[card + 1]):
            row, total = order[place], 0.0
            for k in range(len(means)):
                a = _density(units[row], means[k])
                b = _density(units[row] / CARD_FACTOR, means[k]) / CARD_FACTOR
                plain[row] += weight[k] * a
                times[row] += weight[k] * b
                weight[k] *= (1 - multiplied_share) * a + multiplied_share * b
                total += weight[k]
            for k in range(len(means)):
                weight[k] = max(weight[k] / total, 1e-30)


@njit(cache=True)
def _next_day(belief: np.ndarray, rate: float) -> None:
    """Everyone ages by a day, the oldest go free, and a share `rate` begins anew."""
    free = belief[_FREE] + belief[-1]
    for age in range(len(belief) - 1, 1, -1):
        belief[age] = belief[age - 1] * (1 - rate)
    belief[_FREE] = free * (1 - rate)
    belief[1] = rate


@njit(cache=True)
def _weigh(belief: np.ndarray, taken: float, free: float) -> None:
    """Bayes' rule with the likelihoods of what was seen; what the rules cannot explain counts as unseen."""
    total = belief[_FREE] * free
    for age in range(1, len(belief)):
        total += belief[age] * taken
    if total <= 0.0:
        return
    belief[_FREE] *= free / total
    for age in range(1, len(belief)):
        belief[age] *= taken / total


@njit(cache=True)
def _taken_on(belief: np.ndarray, days: int, rate: float) -> float:
    """Probability of being taken `days` days after the belief's day."""
    still = 0.0
    for age in range(1, len(belief) - days):
        still += belief[age]
    return min(1.0, 1 - (1 - still) * (1 - rate) ** days)


@njit(cache=True)
def _filter(
    columns: tuple[np.ndarray, ...],
    densities: tuple[np.ndarray, np.ndarray],
    card_list: tuple[np.ndarray, np.ndarray],
    terminal_list: tuple[np.ndarray, np.ndarray],
    delay: int,
    out: tuple[np.ndarray, np.ndarray],
) -> None:
    """Row after row: read the labels that have become known, then say how likely rules 2 and 3 made this row."""
    at, card, terminal, large, fraud = columns
    plain, times = densities
    (card_rows, card_begins), (terminal_rows, terminal_begins) = card_list, terminal_list
    by_terminal, by_card = out
    terminals = np.zeros((len(terminal_begins) - 1, TERMINAL_DAYS + 1))
    cards = np.zeros((len(card_begins) - 1, CARD_DAYS + 1))
    terminals[:, _FREE] = cards[:, _FREE] = 1.0
    terminal_day, card_day = np.full(len(terminals), at[0] // DAY_S), np.full(len(cards), at[0] // DAY_S)
    terminal_next, card_next = terminal_begins[:-1].copy(), card_begins[:-1].copy()
    for row in range(len(at)):
        known, today = at[row] - delay, at[row] // DAY_S
        t, c = terminal[row], card[row]
        belief = terminals[t]
        while at[terminal_rows[terminal_next[t]]] <= known:
            seen = terminal_rows[terminal_next[t]]
            for _ in range(at[seen] // DAY_S - terminal_day[t]):
                _next_day(belief, TERMINAL_RATE)
            terminal_day[t] = max(terminal_day[t], at[seen] // DAY_S)
            other = 1.0 if large[seen] else by_card[seen]
            if not large[seen]:  # a large amount is fraud either way
                _weigh(belief, 1.0 if fraud[seen] else 0.0, other if fraud[seen] else 1 - other)
            terminal_next[t] += 1
        by_terminal[row] = _taken_on(belief, today - terminal_day[t], TERMINAL_RATE)
        belief = cards[c]
        while at[card_rows[card_next[c]]] <= known:
            seen = card_rows[card_next[c]]
            for _ in range(at[seen] // DAY_S - card_day[c]):
                _next_day(belief, CARD_RATE)
            card_day[c] = max(card_day[c], at[seen] // DAY_S)
            other = 1.0 if large[seen] else by_terminal[seen]
            a, b = plain[seen] * (1 - CARD_SHARE), times[seen] * CARD_SHARE
            if fraud[seen]:
                _weigh(belief, b + a * other, plain[seen] * other)
            else:
                _weigh(belief, a, plain[seen])
            card_next[c] += 1
        belief, day = belief.copy(), card_day[c]
        place = card_next[c]
        while card_rows[place] != row:  # not labelled yet: the amounts alone speak
            seen = card_rows[place]
            for _ in range(at[seen] // DAY_S - day):
                _next_day(belief, CARD_RATE)
            day = max(day, at[seen] // DAY_S)
            _weigh(belief, plain[seen] * (1 - CARD_SHARE) + times[seen] * CARD_SHARE, plain[seen])
            place += 1
        stolen = _taken_on(belief, today - day, CARD_RATE)
        b = stolen * CARD_SHARE * times[row]
        by_card[row] = b / (b + (1 - stolen * CARD_SHARE) * plain[row])
