"""Teachers for a student that has none: its own running average, its own deepest layer, itself before augmentation."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ml_core.distill.dfad import DFAD, DFADConfig, DFADLoss
from ml_core.distill.features import Features, masked_mean
from ml_core.errors import InputError


class EMATeacher(nn.Module):
    """A copy of the student that follows it slowly: θ' ← decay·θ' + (1 − decay)·θ (Tarvainen and Valpola 2017).

    decay = 1 keeps the student as it was at the start. Always in eval mode and without gradient. Give it to the loop
    as a companion, so that a resumed run goes on with it, and call `follow` after every step.
    """

    def __init__(self, student: nn.Module, *, decay: float = 0.999) -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise InputError(f"decay: {decay} is not in [0, 1]")
        self.decay = decay
        self.model = copy.deepcopy(student).eval().requires_grad_(False)

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """One step towards the student; integer buffers are copied."""
        if self.decay == 1.0:
            return
        mine, theirs = self.model.state_dict(), student.state_dict()
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floats], [theirs[name] for name in floats], 1.0 - self.decay)
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the copy says."""
        with torch.no_grad():
            return self.model(*inputs, **named)

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stays in eval mode: a teacher does not drop out."""
        return super().train(False)


class DeeperToShallower(nn.Module):
    """The deepest layer teaches the others (BYOT, Zhang et al. 2019): an exit for each shallower layer, and DFAD.

    Exits and projectors are trained with the student and thrown away after. Needs at least two layers and logits.
    """

    def __init__(self, config: DFADConfig, *, widths: tuple[int, ...], pooled: int, classes: int) -> None:
        super().__init__()
        if len(widths) < 2:
            raise InputError("widths: a student of one layer has none that is shallower")
        self.exits = nn.ModuleList(nn.Linear(width, classes) for width in widths[:-1])
        self.dfad = DFAD(config, (widths[-1],), widths[:-1], teacher_pooled=pooled, student_pooled=widths[-2])

    def forward(
        self, shown: Features, task: Callable[[Features], Float[Tensor, ""]], progress: float | Float[Tensor, ""]
    ) -> DFADLoss:
        """One batch's loss; the task's part is the mean of the student's own and of the exits'."""
        if shown.logits is None:
            raise InputError("logits: needed, to teach the exits")
        weights = shown.token_weights(shown.layers[0])
        pooled = [masked_mean(layer, weights) for layer in shown.layers[:-1]]
        said = [leave(x).reshape(shown.logits.shape) for leave, x in zip(self.exits, pooled, strict=True)]
        tasks = [task(shown), *(task(replace(shown, logits=logits)) for logits in said)]
        # four dimensions, so that exits are never taken for tokens under the mask
        shallow = replace(
            shown, layers=shown.layers[:-1], pooled=pooled[-1], logits=_exits(said), heads=(), names=shown.names[:-1]
        )
        deep = replace(shown, layers=shown.layers[-1:], logits=_exits([shown.logits] * len(said)), heads=(), names=())
        return self.dfad(shallow, deep, torch.stack(tasks).mean(), progress)


def mask_tokens(
    ids: Int[Tensor, "b n"], *, mask: Bool[Tensor, "b n"], mask_id: int, share: float
) -> Int[Tensor, "b n"]:
    """Augmentation of text: each real token but the first becomes `mask_id` with probability `share` (global RNG)."""
    drawn = (torch.rand(ids.shape, device=ids.device) < share) & mask
    first = torch.arange(ids.shape[1], device=ids.device) == 0
    return torch.where(drawn & ~first, torch.full_like(ids, mask_id), ids)


def add_noise(x: Float[Tensor, "*b"], *, sigma: float) -> Float[Tensor, "*b"]:
    """Augmentation of pictures and tables: Gaussian noise of `sigma` standard deviations of x (global RNG)."""
    return x + sigma * x.std() * torch.randn_like(x)


def _exits(logits: list[Tensor]) -> Tensor:
    flat = [x.reshape(x.shape[0], -1) for x in logits]
    return torch.stack(flat, 1)[:, None]
