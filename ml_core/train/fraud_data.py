"""Rows to train the fraud student on: from many simulated banks, or from one labelled table."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ml_core.data.bank import simulate
from ml_core.data.handbook import Table, events_of, table_from_columns
from ml_core.data.replay import Replay

CHUNK = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Inputs and labels of n transactions; `weight` undoes the thinning of genuine ones. Tokens are float16."""

    features: npt.NDArray[np.float32]
    card: npt.NDArray[np.float16]
    terminal: npt.NDArray[np.float16]
    fraud: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.fraud)

    def take(self, index: npt.NDArray[np.int64] | slice) -> "Samples":
        """The rows at `index`."""
        return Samples(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class BankSize:
    """Size of a simulated bank and what is learnt from: days from `warm_days` on, a share of the genuine."""

    cards: int = 1_500
    days: int = 110
    warm_days: int = 40
    genuine_share: float = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples as tensors on one device."""

    features: Tensor
    card: Tensor
    terminal: Tensor
    fraud: Tensor
    weight: Tensor

    @classmethod
    def of(cls, samples: Samples, *, device: torch.device) -> "Batch":
        """Everything at once (float16 tokens stay float16)."""
        return cls(**{f.name: torch.from_numpy(getattr(samples, f.name)).to(device) for f in fields(samples)})

    def __len__(self) -> int:
        return len(self.fraud)

    def take(self, index: Tensor) -> "Batch":
        """The rows at `index`, tokens widened to float32."""
        return Batch(**{f.name: getattr(self, f.name)[index].float() for f in fields(self)})

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a model's forward takes."""
        return self.features, self.card, self.terminal


def bank_samples(seed: int, size: BankSize) -> Samples:
    """One simulated bank; terminals per card vary with the seed (0.7 to 3)."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
    per_card = 2.0 if rng.random() < 0.5 else rng.uniform(0.7, 3.0)
    columns = simulate(seed=seed, cards=size.cards, terminals=max(50, int(size.cards * per_card)), days=size.days)
    table = table_from_columns(columns)
    usable = table.day - table.day[0] >= size.warm_days
    keep = usable & (table.fraud | (rng.random(len(table)) < size.genuine_share))
    weight = np.where(table.fraud, 1.0, 1.0 / size.genuine_share).astype(np.float32)
    return table_samples(table, keep=keep, weight=weight)


def table_samples(
    table: Table,
    *,
    keep: npt.NDArray[np.bool_],
    weight: npt.NDArray[np.float32],
    extras: npt.NDArray[np.float32] | None = None,
    delay_days: int = 7,
) -> Samples:
    """Replay a table (labels known `delay_days` late) and keep the inputs of the rows in `keep`.

    `extras` (n, e) are further inputs of the same rows; they go behind the features.
    """
    events = events_of(table, delay_days=delay_days)
    replay = Replay()
    parts = []
    for begin in range(0, len(table), CHUNK):
        end = min(begin + CHUNK, len(table))
        inputs = replay.feed(events.part(begin, end))
        rows = np.flatnonzero(keep[begin:end])
        features = inputs.features[rows]
        parts.append(
            Samples(
                features=features if extras is None else np.hstack([features, extras[begin + rows]]),
                card=inputs.card[rows].astype(np.float16),
                terminal=inputs.terminal[rows].astype(np.float16),
                fraud=table.fraud[begin + rows].astype(np.float32),
                weight=weight[begin + rows],
            )
        )
    return concatenate(parts)


def many_banks(seeds: Sequence[int], size: BankSize, *, workers: int) -> Samples:
    """Samples of several banks in the order of the seeds, made by `workers` processes."""
    if workers <= 1:
        return concatenate([bank_samples(seed, size) for seed in seeds])
    bank_samples(seeds[0], BankSize(cards=20, days=50))  # compiles once, before the processes part
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return concatenate(list(pool.map(bank_samples, seeds, [size] * len(seeds))))


def concatenate(parts: Sequence[Samples]) -> Samples:
    """One after the other."""
    return Samples(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Samples)})


def batches(n: int, *, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled index batches; the last short one of an epoch is left out."""
    size = min(size, n)
    while True:
        order = torch.randperm(n, generator=generator)
        for begin in range(0, n - size + 1, size):
            yield order[begin : begin + size]
