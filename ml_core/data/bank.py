"""A simulated bank: cards with homes and habits, terminals, and six kinds of fraud; one seed gives one bank.

Written from the published description of card transaction simulators (Le Borgne et al., Fraud Detection Handbook,
2022, chapter 3: amounts around a card's mean, terminals near its home, large amounts, terminals taken over for 28 days,
stolen cards whose amounts are multiplied by 5 for 14 days) and extended with merchant categories, devices, countries,
account takeover, card testing and mule rings. No code and no row of the Handbook is used. Every parameter is drawn per
seed, so that no two banks are alike; `published=True` keeps to the published rules, parameters around the published.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ml_core.data.bank_fraud import FraudParameters, Rows, add_planned_fraud, mark_rule_fraud
from ml_core.errors import InputError

Columns = dict[str, npt.NDArray]

CATEGORIES = (
    "grocery", "fuel", "restaurant", "clothing", "electronics", "travel", "pharmacy", "online", "cash", "games",
)  # fmt: skip
_CATEGORY_SCALE = np.array([0.8, 1.0, 0.7, 1.2, 2.0, 2.5, 0.6, 1.0, 1.4, 0.5])
_CATEGORY_SHARE = np.array([0.24, 0.1, 0.16, 0.09, 0.06, 0.04, 0.08, 0.13, 0.06, 0.04])
DEVICES = ("chip", "contactless", "phone", "browser", "atm")
COUNTRIES = ("DE", "FR", "NL", "BE", "ES", "IT", "PL", "GB", "US", "TR", "NG", "BR")


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """From `day` on, amounts are multiplied by `amount` and the rate of transactions by `rate`."""

    day: int
    amount: float = 1.0
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BankParameters:
    """How the customers of one bank behave. Amounts in currency units, radius in the 100 × 100 plane."""

    mean_low: float = 5.0
    mean_high: float = 100.0
    spread: float = 0.5
    log_normal: bool = False
    category_effect: float = 0.0
    rate_high: float = 4.0
    radius: float = 5.0
    favourites: float = 1.0
    noon: float = 43_200.0
    day_spread: float = 20_000.0
    weekend_rate: float = 1.0
    online_share: float = 0.0
    fraud: FraudParameters = FraudParameters()


def simulate(
    *,
    seed: int,
    cards: int = 5_000,
    terminals: int = 10_000,
    days: int = 150,
    start: str = "2026-01-01",
    parameters: BankParameters | None = None,
    drift: tuple[Drift, ...] = (),
) -> Columns:
    """Transactions of `days` days from midnight `start`, sorted by time, as columns of the Handbook's raw form.

    TX_DATETIME is datetime64[s]; TX_AMOUNT is cents / 100. TX_FRAUD_SCENARIO (0 genuine, 1 large amount, 2 terminal,
    3 stolen card, 4 takeover, 5 card testing, 6 mule ring) explains the label and is never a model's input.
    """
    if cards < 1 or terminals < 1 or days < 1:
        raise InputError("cards, terminals and days must be at least 1")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    parameters = parameters or draw_parameters(seed=seed)
    people = _People.draw(rng, parameters=parameters, cards=cards, terminals=terminals)
    rows = _genuine(rng, parameters=parameters, people=people, days=days, drift=drift)
    rows = add_planned_fraud(rng, parameters=parameters.fraud, rows=rows, cards=cards, terminals=terminals, days=days)
    rows = rows.take(np.flatnonzero((rows.seconds >= 0) & (rows.seconds < days * 86_400)))
    rows = rows.take(np.argsort(rows.seconds, kind="stable"))
    mark_rule_fraud(rng, parameters=parameters.fraud, rows=rows, cards=cards, terminals=terminals, days=days)
    return _columns(rng, rows=rows, people=people, start=start)


def draw_parameters(*, seed: int, published: bool | None = None) -> BankParameters:
    """The parameters that a seed stands for; half of the seeds keep to the published rules (or as told)."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    if published is None:
        published = bool(rng.random() < 0.5)
    near = _Near(rng, exact=0.5)
    if published:
        return BankParameters(
            mean_low=near(5.0, 2.0, 10.0),
            mean_high=near(100.0, 70.0, 140.0),
            spread=near(0.5, 0.4, 0.6),
            rate_high=near(4.0, 2.0, 6.0),
            radius=near(5.0, 3.0, 10.0),
            fraud=FraudParameters.draw(rng, near=near, published=True),
        )
    return BankParameters(
        mean_low=rng.uniform(2, 15),
        mean_high=rng.uniform(50, 250),
        spread=rng.uniform(0.25, 0.9),
        log_normal=bool(rng.random() < 0.6),
        category_effect=rng.uniform(0, 1),
        rate_high=rng.uniform(1, 7),
        radius=rng.uniform(3, 15),
        favourites=rng.uniform(1, 3),
        noon=rng.uniform(40_000, 55_000),
        day_spread=rng.uniform(10_000, 22_000),
        weekend_rate=rng.uniform(0.6, 1.4),
        online_share=rng.uniform(0, 0.3),
        fraud=FraudParameters.draw(rng, near=near, published=False),
    )


def write_parquet(columns: Columns, path: Path) -> int:
    """Write columns as zstd parquet; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    pq.write_table(table, path, compression="zstd")
    return table.num_rows


class _Near:
    """Draws a parameter: exactly the published value in a share `exact` of the draws, else uniform in a range."""

    def __init__(self, rng: np.random.Generator, *, exact: float) -> None:
        self._rng = rng
        self._exact = exact

    def __call__(self, value: float, low: float, high: float) -> float:
        drawn = self._rng.uniform(low, high)
        return value if self._rng.random() < self._exact else float(drawn)


@dataclass(frozen=True, kw_only=True, slots=True)
class _People:
    """Cards and terminals: `reach` lists the terminals near each card's home, from reach_from[c] on."""

    mean: npt.NDArray[np.float64]
    rate: npt.NDArray[np.float64]
    noon: npt.NDArray[np.float64]
    country: npt.NDArray[np.int64]
    terminal_country: npt.NDArray[np.int64]
    category: npt.NDArray[np.int64]
    reach: npt.NDArray[np.int64]
    reach_from: npt.NDArray[np.int64]

    @classmethod
    def draw(cls, rng: np.random.Generator, *, parameters: BankParameters, cards: int, terminals: int) -> "_People":
        home = rng.uniform(0, 100, (cards, 2))
        place = rng.uniform(0, 100, (terminals, 2))
        reach, counts = _reach(rng, home=home, place=place, radius=parameters.radius)
        domestic = rng.integers(0, 8)
        return cls(
            mean=rng.uniform(parameters.mean_low, parameters.mean_high, cards),
            rate=rng.uniform(0, parameters.rate_high, cards),
            noon=parameters.noon + rng.normal(0, 5_000, cards) * (parameters.noon != 43_200.0),
            country=np.where(rng.random(cards) < 0.95, domestic, rng.integers(0, 8, cards)),
            terminal_country=np.where(
                rng.random(terminals) < 0.93, domestic, rng.integers(0, len(COUNTRIES), terminals)
            ),
            category=rng.choice(len(CATEGORIES), terminals, p=_CATEGORY_SHARE),
            reach=reach,
            reach_from=np.concatenate([[0], np.cumsum(counts)]),
        )


def _reach(
    rng: np.random.Generator, *, home: np.ndarray, place: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Terminals within `radius` of each home in a random order (at least the nearest one), and how many."""
    lists, counts = [], []
    for begin in range(0, len(home), 512):
        part = home[begin : begin + 512]
        squared = ((part[:, None, :] - place[None, :, :]) ** 2).sum(-1)
        near = squared < radius * radius
        near[np.arange(len(part)), squared.argmin(1)] = True
        card, terminal = np.nonzero(near)
        order = np.lexsort((rng.random(len(card)), card))
        lists.append(terminal[order])
        counts.append(near.sum(1))
    return np.concatenate(lists), np.concatenate(counts)


def _genuine(
    rng: np.random.Generator, *, parameters: BankParameters, people: _People, days: int, drift: tuple[Drift, ...]
) -> Rows:
    """Every card's ordinary transactions: Poisson counts a day, times around noon, amounts around its mean."""
    weekday = np.where(np.arange(days) % 7 >= 5, parameters.weekend_rate, 1.0)
    rate_factor, amount_factor = np.ones(days), np.ones(days)
    for change in drift:
        rate_factor[change.day :] *= change.rate
        amount_factor[change.day :] *= change.amount
    counts = rng.poisson(people.rate[:, None] * (weekday * rate_factor)[None, :])
    card = np.repeat(np.arange(len(people.rate)), counts.sum(1))
    day = np.repeat(np.tile(np.arange(days), len(people.rate)), counts.ravel())
    seconds = rng.normal(people.noon[card], parameters.day_spread).astype(np.int64)
    inside = (seconds > 0) & (seconds < 86_400)
    card, day, seconds = card[inside], day[inside], seconds[inside]
    terminal = _choose_terminals(rng, parameters=parameters, people=people, card=card)
    amount = _amounts(rng, parameters=parameters, mean=people.mean[card])
    effect = 1 + parameters.category_effect * (_CATEGORY_SCALE[people.category[terminal]] - 1)
    cents = np.rint(amount * effect * amount_factor[day] * 100).astype(np.int64)
    return Rows.of(seconds=day * 86_400 + seconds, card=card, terminal=terminal, cents=np.maximum(cents, 1))


def _choose_terminals(
    rng: np.random.Generator, *, parameters: BankParameters, people: _People, card: np.ndarray
) -> np.ndarray:
    """A terminal near home, favourites first when `favourites` is above 1; a share is bought anywhere."""
    size = people.reach_from[card + 1] - people.reach_from[card]
    pick = (size * rng.random(len(card)) ** parameters.favourites).astype(np.int64)
    terminal = people.reach[people.reach_from[card] + np.minimum(pick, size - 1)]
    online = rng.random(len(card)) < parameters.online_share
    return np.where(online, rng.integers(0, len(people.category), len(card)), terminal)


def _amounts(rng: np.random.Generator, *, parameters: BankParameters, mean: np.ndarray) -> np.ndarray:
    """Amounts in units: normal around the card's mean (a negative draw becomes uniform), or log-normal."""
    if parameters.log_normal:
        sigma = np.sqrt(np.log1p(parameters.spread**2))
        return mean * np.exp(rng.normal(-0.5 * sigma**2, sigma, len(mean)))
    amount = rng.normal(mean, parameters.spread * mean)
    return np.where(amount < 0, rng.uniform(0, 2 * mean), amount)


def _columns(rng: np.random.Generator, *, rows: Rows, people: _People, start: str) -> Columns:
    n = len(rows.seconds)
    online = people.category[rows.terminal] == CATEGORIES.index("online")
    remote = online | (rows.scenario >= 4)
    device = np.where(remote, 2 + rng.integers(0, 2, n), rng.integers(0, 2, n))
    device = np.where(people.category[rows.terminal] == CATEGORIES.index("cash"), 4, device)
    abroad = (rows.scenario >= 4) & (rng.random(n) < 0.5)
    country = np.where(abroad, rng.integers(8, len(COUNTRIES), n), people.terminal_country[rows.terminal])
    return {
        "TRANSACTION_ID": np.arange(n, dtype=np.int64),
        "TX_DATETIME": np.datetime64(start, "s") + rows.seconds,
        "CUSTOMER_ID": rows.card,
        "TERMINAL_ID": rows.terminal,
        "TX_AMOUNT": rows.cents / 100,
        "TX_TIME_SECONDS": rows.seconds,
        "TX_TIME_DAYS": rows.seconds // 86_400,
        "TX_FRAUD": (rows.scenario > 0).astype(np.int8),
        "TX_FRAUD_SCENARIO": rows.scenario.astype(np.int8),
        "MERCHANT_CATEGORY": np.array(CATEGORIES)[people.category[rows.terminal]],
        "DEVICE": np.array(DEVICES)[device],
        "COUNTRY": np.array(COUNTRIES)[country],
        "CARD_PRESENT": (~remote).astype(np.int8),
    }


def _main() -> None:
    """`python -m ml_core.data.bank --out FILE`: simulate a bank into a parquet file, for demos and tests."""
    parser = argparse.ArgumentParser(prog="python -m ml_core.data.bank", description=_main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cards", type=int, default=2_000)
    parser.add_argument("--terminals", type=int, help="twice the number of cards unless told")
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    terminals = asked.terminals or 2 * asked.cards
    columns = simulate(seed=asked.seed, cards=asked.cards, terminals=terminals, days=asked.days)
    write_parquet(columns, asked.out)


if __name__ == "__main__":
    _main()
