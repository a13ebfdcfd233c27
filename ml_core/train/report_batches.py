"""Batches of films on the device, drawn in fixed shares by kind and varied."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ml_core.contracts import FindingState
from ml_core.data.report_tokens import PAD, STATE_INDEX
from ml_core.train.report_films import LABELLED, OTHER, SIMULATED, FilmSet
from ml_core.train.report_losses import pictures_vary

_HEAVY = 2.0  # weight of a labelled film's findings: there are few of them


class FilmBatches:
    """Films on the device, drawn in fixed shares by kind."""

    def __init__(self, films: FilmSet, shares: dict[int, float], *, device: str, seed: int) -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(device=self.device).manual_seed(seed)
        self.images = torch.from_numpy(films.images).to(self.device)
        self.kind = torch.from_numpy(films.kind.astype(np.int64)).to(self.device)
        self.states = torch.from_numpy(films.states.astype(np.int64)).to(self.device)
        self.known = torch.from_numpy(films.known).to(self.device)
        self.boxes = torch.from_numpy(films.boxes).to(self.device)
        self.texts = torch.from_numpy(films.texts.astype(np.int64)).to(self.device)
        present = [kind for kind in shares if bool((self.kind == kind).any())]
        total = sum(shares[kind] for kind in present)
        self.rows = [(torch.nonzero(self.kind == kind).flatten(), shares[kind] / total) for kind in present]

    def draw(self, size: int) -> "FilmBatch":
        """A batch, varied; each kind gets its share."""
        picks = []
        for rows, share in self.rows:
            count = max(1, round(size * share))
            at = torch.randint(len(rows), (count,), generator=self.generator, device=self.device)
            picks.append(rows[at])
        index = torch.cat(picks)
        wording = torch.randint(self.states.shape[1], (len(index),), generator=self.generator, device=self.device)
        kind = self.kind[index]
        images = self.images[index, None].float() / 255
        images = pictures_vary(images, move=(kind != SIMULATED).float(), generator=self.generator)
        return FilmBatch(
            images=images,
            kind=kind,
            states=self.states[index, wording],
            known=self.known[index],
            boxes=self.boxes[index],
            texts=self.texts[index, wording],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmBatch:
    """One batch on the device."""

    images: Tensor
    kind: Tensor
    states: Tensor
    known: Tensor
    boxes: Tensor
    texts: Tensor

    @property
    def present(self) -> Tensor:
        """1 where positive or uncertain (b 14)."""
        positive, uncertain = STATE_INDEX[FindingState.POSITIVE], STATE_INDEX[FindingState.UNCERTAIN]
        return ((self.states == positive) | (self.states == uncertain)).float()

    @property
    def weight(self) -> Tensor:
        """Weight of each film's findings (b)."""
        return torch.where(self.kind == LABELLED, _HEAVY, 1.0)

    @property
    def chest(self) -> Tensor:
        """True for chest films (b)."""
        return self.kind != OTHER

    @property
    def told(self) -> Tensor:
        """True where a text goes with the film (b)."""
        return (self.texts != PAD).any(1)
