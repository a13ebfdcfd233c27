"""The six kinds of fraud of the simulated bank: three rules over existing rows, three schemes that add rows."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

GENUINE, LARGE, TERMINAL, STOLEN, TAKEOVER, TESTING, MULES = range(7)


@dataclass(frozen=True, kw_only=True, slots=True)
class FraudParameters:
    """Rates are per day and per card or terminal; days are how long a compromise lasts; the defaults are published."""

    large_amount: float = 220.0
    large_share: float = 1.0
    terminal_rate: float = 2 / 10_000
    terminal_days: float = 28.0
    terminal_share: float = 1.0
    stolen_rate: float = 3 / 5_000
    stolen_days: float = 14.0
    stolen_share: float = 1 / 3
    stolen_factor: float = 5.0
    takeover_rate: float = 0.0
    testing_rate: float = 0.0
    mule_rate: float = 0.0

    @classmethod
    def draw(
        cls, rng: np.random.Generator, *, near: Callable[[float, float, float], float], published: bool
    ) -> "FraudParameters":
        """Parameters of one bank."""
        scale = near(1.0, 0.4, 2.5)
        common = {
            "terminal_rate": scale * near(2 / 10_000, 0.8e-4, 4e-4),
            "terminal_days": near(28.0, 14.0, 35.0),
            "stolen_rate": scale * near(3 / 5_000, 2e-4, 1.2e-3),
            "stolen_days": near(14.0, 7.0, 21.0),
            "stolen_share": near(1 / 3, 0.15, 0.6),
            "stolen_factor": near(5.0, 3.0, 8.0),
        }
        if published:
            return cls(large_amount=near(220.0, 150.0, 400.0), **common)
        return cls(
            large_amount=float(rng.uniform(200, 1_500)),
            large_share=float(rng.uniform(0, 1)),
            terminal_share=float(rng.uniform(0.4, 1)),
            takeover_rate=float(rng.uniform(0, 4e-4)),
            testing_rate=float(rng.uniform(0, 3e-4)),
            mule_rate=float(rng.uniform(0, 2e-5)),
            **common,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Transactions as parallel columns; seconds since the bank's first midnight."""

    seconds: npt.NDArray[np.int64]
    card: npt.NDArray[np.int64]
    terminal: npt.NDArray[np.int64]
    cents: npt.NDArray[np.int64]
    scenario: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls, *, seconds: np.ndarray, card: np.ndarray, terminal: np.ndarray, cents: np.ndarray, scenario: int = GENUINE
    ) -> "Rows":
        """Rows of one scenario."""
        return cls(seconds=seconds, card=card, terminal=terminal, cents=cents, scenario=np.full(len(seconds), scenario))

    def take(self, index: np.ndarray) -> "Rows":
        """The rows at `index`."""
        return Rows(**{column.name: getattr(self, column.name)[index] for column in fields(self)})

    def join(self, other: "Rows") -> "Rows":
        """These rows and then the others."""
        return Rows(**{c.name: np.concatenate([getattr(self, c.name), getattr(other, c.name)]) for c in fields(self)})


def mark_rule_fraud(
    rng: np.random.Generator, *, parameters: FraudParameters, rows: Rows, cards: int, terminals: int, days: int
) -> None:
    """Large amounts, compromised terminals, stolen cards; a later rule overwrites an earlier one (in place)."""
    genuine = rows.scenario == GENUINE
    large = genuine & (rows.cents > round(parameters.large_amount * 100))
    rows.scenario[large & (rng.random(len(large)) < parameters.large_share)] = LARGE
    day = rows.seconds // 86_400
    taken = _spells(rng, entities=terminals, days=days, rate=parameters.terminal_rate, length=parameters.terminal_days)
    hit = genuine & taken[rows.terminal, day] & (rng.random(len(day)) < parameters.terminal_share)
    rows.scenario[hit] = TERMINAL
    stolen = _spells(rng, entities=cards, days=days, rate=parameters.stolen_rate, length=parameters.stolen_days)
    hit = genuine & stolen[rows.card, day] & (rng.random(len(day)) < parameters.stolen_share)
    rows.scenario[hit] = STOLEN
    rows.cents[hit] = np.rint(rows.cents[hit] * parameters.stolen_factor).astype(np.int64)


def add_planned_fraud(
    rng: np.random.Generator, *, parameters: FraudParameters, rows: Rows, cards: int, terminals: int, days: int
) -> Rows:
    """Adds account takeovers, card testing and mule rings to the genuine rows."""
    usual = np.bincount(rows.card, rows.cents, cards) / np.maximum(np.bincount(rows.card, minlength=cards), 1)
    usual = np.where(usual > 0, usual, 5_000.0)
    size = {"cards": cards, "terminals": terminals, "days": days}
    takeover = _takeover(rng, rate=parameters.takeover_rate, usual=usual, **size)
    testing = _testing(rng, rate=parameters.testing_rate, usual=usual, **size)
    mules = _mules(rng, rate=parameters.mule_rate, **size)
    return rows.join(takeover).join(testing).join(mules)


def _spells(rng: np.random.Generator, *, entities: int, days: int, rate: float, length: float) -> np.ndarray:
    """(entities, days) of bool: inside a spell of `length` days that began with probability `rate` a day."""
    began = np.zeros((entities, days + 1), np.int32)
    who, when = np.nonzero(rng.random((entities, days)) < rate)
    spans = np.maximum(1, np.rint(length * np.ones(len(who)))).astype(np.int64)
    np.add.at(began, (who, when), 1)
    np.add.at(began, (who, np.minimum(when + spans, days)), -1)
    return np.cumsum(began, axis=1)[:, :days] > 0


def _takeover(
    rng: np.random.Generator, *, rate: float, usual: np.ndarray, cards: int, terminals: int, days: int
) -> Rows:
    """For one to three days someone shops with the card at terminals that it never saw, above its usual amounts."""
    n = rng.poisson(rate * cards * days)
    count = 2 + rng.poisson(5, n)
    card = np.repeat(rng.integers(0, cards, n), count)
    began = np.repeat(rng.integers(0, days * 86_400, n), count)
    hours = np.repeat(rng.uniform(6, 72, n), count)
    seconds = began + (rng.random(len(card)) * hours * 3_600).astype(np.int64)
    cents = usual[card] * np.exp(rng.normal(np.log(2.5), 0.5, len(card)))
    return Rows.of(
        seconds=seconds,
        card=card,
        terminal=rng.integers(0, terminals, len(card)),
        cents=np.maximum(np.rint(cents).astype(np.int64), 1),
        scenario=TAKEOVER,
    )


def _testing(
    rng: np.random.Generator, *, rate: float, usual: np.ndarray, cards: int, terminals: int, days: int
) -> Rows:
    """A run of tiny amounts within minutes at one terminal, then a large purchase elsewhere."""
    n = rng.poisson(rate * cards * days)
    tiny = 3 + rng.poisson(3, n)
    card, began = rng.integers(0, cards, n), rng.integers(0, days * 86_400, n)
    who = np.repeat(np.arange(n), tiny)
    tests = Rows.of(
        seconds=began[who] + rng.integers(0, 1_800, len(who)),
        card=card[who],
        terminal=rng.integers(0, terminals, n)[who],
        cents=rng.integers(10, 300, len(who)),
        scenario=TESTING,
    )
    purchase = Rows.of(
        seconds=began + rng.integers(1_800, 86_400, n),
        card=card,
        terminal=rng.integers(0, terminals, n),
        cents=np.rint(usual[card] * rng.uniform(3, 8, n)).astype(np.int64) + 1,
        scenario=TESTING,
    )
    return tests.join(purchase)


def _mules(rng: np.random.Generator, *, rate: float, cards: int, terminals: int, days: int) -> Rows:
    """A ring of cards passes nearly equal round amounts through two terminals for about two weeks."""
    parts = Rows.of(**{name: np.zeros(0, np.int64) for name in ("seconds", "card", "terminal", "cents")})
    for _ in range(rng.poisson(rate * cards * days)):
        ring = rng.integers(0, cards, rng.integers(4, 12))
        n = int(rng.integers(20, 80))
        began = int(rng.integers(0, days)) * 86_400
        amount = int(rng.integers(5, 40)) * 1_000
        parts = parts.join(
            Rows.of(
                seconds=began + rng.integers(0, 14 * 86_400, n),
                card=rng.choice(ring, n),
                terminal=rng.choice(rng.integers(0, terminals, 2), n),
                cents=amount - rng.integers(0, 500, n),
                scenario=MULES,
            )
        )
    return parts
