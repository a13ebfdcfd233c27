"""Needles in long inputs: key and value pairs among filler, asked for at the end; recall by where the needle lay."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ml_core.layers.segments import SegmentedBlock, stream
from ml_core.seed import torch_generator

_KEYS, _VALUES, _FILLER = 32, 32, 64
_ASK = _KEYS + _VALUES + _FILLER
VOCABULARY = _ASK + 1
WORDS_ASKED = 3  # ask, key, and the place where the value is to be said


@dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """Sizes of the model and of the task. needles: pairs in each input, each in a segment of its own.

    length: the longest input of the training, which begins with short ones.
    """

    d: int = 64
    h: int = 4
    layers: int = 3
    segment: int = 16
    neighbours: int = 1
    sinks: int = 4
    needles: int = 2
    length: int = 256
    batch: int = 64
    steps: int = 1_500
    rate: float = 2e-3


@dataclass(frozen=True, kw_only=True)
class Needles:
    """A batch of b inputs of n tokens that end in questions; `at`: where each answer is due, `answer`: its value."""

    ids: Int[Tensor, "b n"]
    at: Int[Tensor, " a"]
    answer: Int[Tensor, "b a"]
    segment: Int[Tensor, "b a"]


class NeedleModel(nn.Module):
    """Token embedding, blocks of segmented attention, values as logits (b n v)."""

    def __init__(self, config: NeedleConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY, config.d)
        layout = {"segment": config.segment, "neighbours": config.neighbours, "sinks": config.sinks}
        self.blocks = nn.ModuleList(
            SegmentedBlock(config.d, config.h, 4 * config.d, **layout) for _ in range(config.layers)
        )
        self.norm, self.head = nn.LayerNorm(config.d), nn.Linear(config.d, _VALUES)

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
        """The whole input at once."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.no_grad()
    def last(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b s v"]:
        """Logits of the last segment, by a stream that keeps no other."""
        parts = (self.embedding(part) for part in ids.split(self.config.segment, dim=1))
        for x in stream(self.blocks, parts):
            shown = x
        return self.head(self.norm(shown))


def needles(config: NeedleConfig, *, length: int, batch: int, generator: torch.Generator) -> Needles:
    """`length` tokens, a multiple of the segment; the last segments hold the questions and no needle."""
    asked = -(-config.needles * WORDS_ASKED // config.segment)
    places = length // config.segment - asked
    ids = torch.randint(_KEYS + _VALUES, _ASK, (batch, length), generator=generator)
    keys = torch.rand(batch, _KEYS, generator=generator).argsort(1)[:, : config.needles]
    values = torch.randint(0, _VALUES, (batch, config.needles), generator=generator)
    segments = torch.rand(batch, places, generator=generator).argsort(1)[:, : config.needles]
    within = torch.randint(0, config.segment - 1, (batch, config.needles), generator=generator)
    rows, start = torch.arange(batch)[:, None], segments * config.segment + within
    ids[rows, start], ids[rows, start + 1] = keys, _KEYS + values
    # asked in another order than they came
    order = torch.rand(batch, config.needles, generator=generator).argsort(1)
    at = length - config.needles * WORDS_ASKED + torch.arange(config.needles) * WORDS_ASKED
    ids[:, at], ids[:, at + 1] = _ASK, keys.gather(1, order)
    return Needles(ids=ids, at=at + 1, answer=values.gather(1, order), segment=segments.gather(1, order))


def fit(
    config: NeedleConfig, *, seed: int, device: torch.device, say: Callable[[str], None] | None = None
) -> NeedleModel:
    """A model trained on inputs of `config.length` tokens alone: AdamW, half a cosine."""
    torch.manual_seed(seed)
    model = NeedleModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    generator = torch_generator(seed, "needles")
    for step in range(config.steps):
        length = _length(config, done=step / config.steps, generator=generator)
        some = needles(config, length=length, batch=config.batch, generator=generator)
        logits = model(some.ids.to(device))[:, some.at.to(device)]
        loss = functional.cross_entropy(logits.flatten(0, 1), some.answer.flatten().to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if say is not None and (step + 1) % 100 == 0:
            say(f"step {step + 1}: loss {float(loss.detach()):.3f}")
    return model.eval()


def _length(config: NeedleConfig, *, done: float, generator: torch.Generator) -> int:
    """Short inputs first, where a needle is still in sight; from 60% of the training on any up to the longest."""
    least = config.needles + -(-config.needles * WORDS_ASKED // config.segment)
    most = config.length // config.segment
    reach = least + round((most - least) * min(1.0, max(0.0, (done - 0.3) / 0.3)))
    return config.segment * int(torch.randint(least, reach + 1, (1,), generator=generator))


def recall(model: NeedleModel, *, length: int, inputs: int, seed: int, device: torch.device) -> float:
    """Share of the questions answered rightly on `inputs` fresh inputs of `length` tokens, read as streams."""
    config = model.config
    generator = torch_generator(seed, "needles", "asked", length)
    right = 0
    for _ in range(inputs):
        some = needles(config, length=length, batch=1, generator=generator)
        shown = model.last(some.ids.to(device)).cpu()
        at = some.at - (length - shown.shape[1])
        right += int((shown[:, at].argmax(-1) == some.answer).sum())
    return right / (inputs * config.needles)
