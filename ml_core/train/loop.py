"""The generic distillation loop: AdamW, cosine annealing, gradient accumulation, checkpoints that resume exactly."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ml_core.config import from_mapping, to_mapping
from ml_core.distill.dfad import DFADLoss
from ml_core.errors import RunError
from ml_core.events import EventLog
from ml_core.seed import derive, rng_restore, rng_state

Batch = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """The source's settings of DFAD training by default (engine.md, section 1)."""

    epochs: int
    lr: float = 3e-5
    weight_decay: float = 0.01
    accumulation: int = 4
    max_grad_norm: float = 1.0
    seed: int = 0


def train(
    student: nn.Module,
    *,
    config: LoopConfig,
    batches: Callable[[int], Iterable[Batch]],
    batches_per_epoch: int,
    loss: Callable[[nn.Module, Batch, float], DFADLoss | Tensor],
    folder: Path,
    log: EventLog,
    criterion: nn.Module | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train `student` in place, and the parameters of `criterion` (projectors) with it.

    batches: of the epoch (from 0), the same for the same epoch, `batches_per_epoch` of them. loss: of (student, batch,
    progress), where progress = epoch / epochs, the source's schedule of alpha. on_epoch: called after each epoch, in
    eval mode. A checkpoint is written after every epoch to FOLDER/checkpoints/last; where one of the same config is
    found there, training goes on behind it and reaches the same bits as one run through. Raises RunError when the loss
    is not finite or the checkpoint is of another config.
    """
    models = {"student": student} | ({"criterion": criterion} if criterion is not None else {})
    parameters = [p for model in models.values() for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    per_epoch = math.ceil(batches_per_epoch / config.accumulation)
    place = folder / "checkpoints" / "last"
    done = checkpoint_load(place, models=models, optimizer=optimizer, config=config) if place.exists() else 0
    if done:
        log.log(f"resumed after epoch {done} of {config.epochs}")
    for epoch in range(done, config.epochs):
        torch.manual_seed(derive(config.seed, "epoch", epoch))
        _epoch(
            epoch, models=models, optimizer=optimizer, config=config, batches=batches, loss=loss, log=log, per=per_epoch
        )
        checkpoint_save(place, models=models, optimizer=optimizer, config=config, epochs_done=epoch + 1)
        for model in models.values():
            model.eval()
        if on_epoch is not None:
            on_epoch(epoch)


def cosine_rate(step: int, *, steps: int, peak: float) -> float:
    """Learning rate of step (from 0): half a cosine from `peak` to 0 (Loshchilov and Hutter 2017, no restarts)."""
    return peak * 0.5 * (1.0 + math.cos(math.pi * step / max(1, steps)))


def checkpoint_save(
    place: Path,
    *,
    models: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    epochs_done: int,
) -> None:
    """Write everything that going on needs, as safetensors and JSON, whole or not at all."""
    tensors = {
        f"{prefix}.{name}": tensor.detach().cpu().contiguous().clone()
        for prefix, model in models.items()
        for name, tensor in model.state_dict().items()
    }
    state = optimizer.state_dict()
    tensors |= {
        f"optimizer.{index}.{key}": value.detach().cpu().clone()
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    tensors |= rng_state()
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / "state.safetensors")
    (partial / "state.json").write_text(json.dumps({"epochs_done": epochs_done, "config": to_mapping(config)}))
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)


def checkpoint_load(
    place: Path, *, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, config: LoopConfig
) -> int:
    """Put a checkpoint back into models and optimiser; returns the number of epochs done."""
    body = json.loads((place / "state.json").read_text())
    if from_mapping(LoopConfig, body["config"]) != config:
        raise RunError(f"{place} was written with other settings")
    tensors = load_file(place / "state.safetensors")
    for prefix, model in models.items():
        own = {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
        model.load_state_dict(own)
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)
    rng_restore(tensors)
    return int(body["epochs_done"])


def _epoch(
    epoch: int,
    *,
    models: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    batches: Callable[[int], Iterable[Batch]],
    loss: Callable[[nn.Module, Batch, float], DFADLoss | Tensor],
    log: EventLog,
    per: int,
) -> None:
    for model in models.values():
        model.train()
    group: list[DFADLoss | Tensor] = []
    step, steps = epoch * per, per * config.epochs
    items = list(batches(epoch))
    for number, batch in enumerate(items):
        # the last group of an epoch may be short; its gradient is still a mean
        size = min(config.accumulation, len(items) - number // config.accumulation * config.accumulation)
        result = loss(models["student"], batch, epoch / config.epochs)
        total = result.total if isinstance(result, DFADLoss) else result
        if not torch.isfinite(total):
            raise RunError(f"the loss is {float(total.detach())} in epoch {epoch + 1}, batch {number + 1}")
        (total / size).backward()
        group.append(result)
        if len(group) == size:
            rate = cosine_rate(step, steps=steps, peak=config.lr)
            _update(optimizer, rate=rate, max_grad_norm=config.max_grad_norm)
            step += 1
            _report(group, log=log, step=step, steps=steps, epoch=epoch, config=config, rate=rate)
            group = []


def _update(optimizer: torch.optim.Optimizer, *, rate: float, max_grad_norm: float) -> None:
    for entry in optimizer.param_groups:
        entry["lr"] = rate
        torch.nn.utils.clip_grad_norm_(entry["params"], max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _report(
    group: list[DFADLoss | Tensor],
    *,
    log: EventLog,
    step: int,
    steps: int,
    epoch: int,
    config: LoopConfig,
    rate: float,
) -> None:
    totals = [float((item.total if isinstance(item, DFADLoss) else item).detach()) for item in group]
    last = group[-1]
    log.step(
        step,
        steps=steps,
        epoch=epoch + 1,
        epochs=config.epochs,
        loss=sum(totals) / len(totals),
        alpha=last.alpha if isinstance(last, DFADLoss) else 0.0,
        lr=rate,
        align=last.align() if isinstance(last, DFADLoss) else {},
    )
