"""What of the shipped students an engine runs: the fraud student whole, the report student's encoder with its heads."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_core.data.replay import Inputs
from ml_core.models.fraud_student import FraudStudent
from ml_core.models.report_student import ReportStudent, Seen
from ml_core.serving.engines.interface import Program


def fraud_program(model: FraudStudent) -> Program:
    """Features, card and terminal tokens (as many as the model reads) to logits, b rows at once."""
    inputs = ("features", "card", "terminal")
    return Program(
        module=model,
        inputs=inputs,
        outputs=("logits",),
        axes={name: {0: "b"} for name in inputs},
        limits={"b": 1 << 20},
        example=lambda sizes, seed: fraud_inputs(
            model, simulated_inputs(), slice(seed * sizes["b"], (seed + 1) * sizes["b"])
        ),
    )


def fraud_inputs(model: FraudStudent, inputs: Inputs, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The part of `inputs` as the program takes it; further inputs that the model declares and they lack are 0."""
    config = model.config
    features = inputs.features[part]
    lacking = config.features + len(config.categories) - features.shape[1]
    features = np.pad(features, ((0, 0), (0, lacking)))
    card, terminal = inputs.card[part, : config.card_tokens], inputs.terminal[part, : config.terminal_tokens]
    return _tensor(features), _tensor(card), _tensor(terminal)


def _tensor(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


@cache
def simulated_inputs() -> Inputs:
    """Transactions of a simulated bank, the latest (whose histories are fullest) first, labels 7 days late."""
    from ml_core.data.bank import simulate
    from ml_core.data.handbook import events_of, table_from_columns
    from ml_core.data.replay import Replay

    table = table_from_columns(simulate(seed=31, cards=60, terminals=40, days=60))
    found = Replay().feed(events_of(table))
    features, card, terminal = (each[::-1].copy() for each in (found.features, found.card, found.terminal))
    return Inputs(features=features, card=card, terminal=terminal)


class SeenCore(nn.Module):
    """ReportStudent.forward_seen for one image, without the encoder's layers: what serving reads."""

    def __init__(self, student: ReportStudent) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (1 1 h w) to tokens, gate, states, attention, memory, contexts."""
        seen = self.student.forward_seen(images)
        return seen.tokens, seen.gate, seen.states, seen.attention, seen.memory, seen.contexts


def seen_of(outputs: tuple[Tensor, ...]) -> Seen:
    """What SeenCore returns, as forward_seen would say it."""
    tokens, gate, states, attention, memory, contexts = outputs
    return Seen(
        tokens=tokens, layers=(), gate=gate, states=states, attention=attention, memory=memory, contexts=contexts
    )


def report_program(student: ReportStudent) -> Program:
    """One image (1 1 h w) in [0, 1] at a time: oneDNN's convolutions round by batch, and one image is fastest alone."""
    return Program(
        module=SeenCore(student),
        inputs=("images",),
        outputs=("tokens", "gate", "states", "attention", "memory", "contexts"),
        axes={},
        limits={},
        example=lambda sizes, seed: (simulated_film(seed, size=student.config.image_size),),
    )


@cache
def simulated_film(seed: int, *, size: int) -> Tensor:
    """A simulated film as serving prepares it (1 1 h w)."""
    from ml_core.data.chest import film_prepare
    from ml_core.data.phantom import render

    pixels = render(seed, size=size).pixels
    grey = pixels.astype(np.float32) / max(1, int(pixels.max()))
    return torch.from_numpy(film_prepare(grey, size=size))[None, None]
