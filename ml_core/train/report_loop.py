"""One model on its way: optimiser, schedule by steps or by the clock, mixed precision, running average."""

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """How long and how fast: `steps` batches, or as many of them as go into `seconds` of wall clock (0: no limit).

    `rate` is the peak learning rate, `decay` the weight decay, `ema` the memory of the running average; whoever watches
    is called every `every` steps.
    """

    steps: int
    batch: int
    rate: float
    device: str = "cpu"
    seed: int = 0
    decay: float = 0.05
    ema: float = 0.998
    every: int = 20
    seconds: float = 0.0


class Course:
    """How far a fit is: by its steps, or by the clock where that runs out first."""

    def __init__(self, options: FitOptions) -> None:
        self.options, self.at, self.started = options, 0, time.monotonic()

    @property
    def progress(self) -> float:
        """In [0, 1]; 1 ends the fit."""
        share = self.at / self.options.steps if self.options.steps else 1.0
        if self.options.seconds > 0:
            share = max(share, (time.monotonic() - self.started) / self.options.seconds)
        return min(1.0, share)


class Loop:
    """Steps of AdamW on `modules` and the running average of `model`; half a cosine down after a linear warm-up."""

    def __init__(self, model: nn.Module, modules: list[nn.Module], options: FitOptions) -> None:
        self.model, self.options = model, options
        self.cuda = options.device.startswith("cuda")
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98), fused=self.cuda)
        self.parameters = parameters
        self.mean = copy.deepcopy(model).eval()
        self.at = 0
        self.rate = 0.0

    def autocast(self) -> torch.autocast:
        """bf16 on a GPU, nothing elsewhere."""
        return torch.autocast("cuda" if self.cuda else "cpu", dtype=torch.bfloat16, enabled=self.cuda)

    def step(self, loss: Tensor, *, progress: float) -> None:
        """One step down `loss`; `progress` in [0, 1] says where on the schedule."""
        options = self.options
        warm = min(1.0, (self.at + 1) / max(1, min(200, options.steps // 10)))
        self.rate = options.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.at += 1
        self._follow(min(options.ema, 1 - 10 / (9 + self.at)) if self.at > 10 else 0.0)

    @torch.no_grad()
    def _follow(self, keep: float) -> None:
        ours, theirs = self.mean.state_dict(), self.model.state_dict()
        floats = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[name] for name in floats], [theirs[name] for name in floats], 1 - keep)

    def average(self) -> nn.Module:
        """The running average, in eval mode."""
        return self.mean.eval()
