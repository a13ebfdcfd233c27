"""The generic distillation loop: AdamW, cosine annealing, accumulation, exact resumption, any number of processes."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ml_core.distill.cost import Meter
from ml_core.distill.processes import World, buffers_mean, equal_start, gradients_sum, world_now
from ml_core.distill.spec import DFADLoss
from ml_core.errors import RunError
from ml_core.events import EventLog
from ml_core.seed import derive
from ml_core.train.checkpoint import LoopConfig, checkpoint_load, checkpoint_save
from ml_core.train.graphs import StepGraphs

Batch = Any
LossOf = Callable[[nn.Module, Batch, Any], DFADLoss | Tensor]  # progress: a float, or a tensor under `graphs`
_END = object()


def train(
    student: nn.Module,
    *,
    config: LoopConfig,
    batches: Callable[[int], Iterable[Batch]],
    batches_per_epoch: int,
    loss: LossOf,
    folder: Path,
    log: EventLog | None,
    criterion: nn.Module | None = None,
    companions: Mapping[str, nn.Module] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    meter: Meter | None = None,
) -> None:
    """Train `student` in place, and the parameters of `criterion` (projectors) with it.

    batches: of the epoch (from 0), the same for the same epoch, `batches_per_epoch` of them. loss: of (student, batch,
    progress), where progress = epoch / epochs, the source's schedule of alpha. companions: modules that go into the
    checkpoint beside (an EMA teacher); their parameters that require a gradient are trained too. on_step: called with
    the number of steps done after each step (where an EMA teacher follows). on_epoch: after each epoch, in eval mode.
    meter: what measured the alignment inside `loss`; its share of the time is logged every epoch.

    Under torchrun (`processes.join` first) each process takes its share of the batches of every accumulated group, so
    the global batch and, but for dropout and the order of sums, the result are those of one process. All see the same
    `batches`; the first alone writes. `log` may be None, and is not used by the others.

    A checkpoint is written to FOLDER/checkpoints/last.safetensors; where one of the same config is found there,
    training goes on behind it, in the middle of an epoch too, and reaches the same bits as one run through. Raises
    RunError when the loss is not finite, the batches are fewer or more than said, or the checkpoint is of another
    config.
    """
    if config.graphs and (world_now().size > 1 or config.accumulation > 1):
        raise RunError("graphs: for one process without accumulation")
    models = {"student": student} | ({"criterion": criterion} if criterion is not None else {}) | dict(companions or {})
    parameters = [p for model in models.values() for p in model.parameters() if p.requires_grad]
    run = _Run(
        config=config,
        models=models,
        optimizer=_optimizer(parameters, config=config),
        parameters=parameters,
        place=folder / "checkpoints" / "last.safetensors",
        world=world_now(),
        log=log,
        per_epoch=math.ceil(batches_per_epoch / config.accumulation),
        batches_per_epoch=batches_per_epoch,
        on_step=on_step,
        meter=meter,
    )
    if config.graphs:
        run.graphed = _graphed(run, loss=loss)
    equal_start(models, world=run.world)
    done = 0
    if run.place.exists():
        done = checkpoint_load(run.place, models=models, optimizer=run.optimizer, config=config)
        run.say(f"resumed after {_where(done, per=run.per_epoch, epochs=config.epochs)}")
    with _bar(run, done=done) as advance:
        for epoch in range(done // run.per_epoch, config.epochs):
            _epoch(run, epoch=epoch, done=done, batches=batches, loss=loss, advance=advance)
            done = (epoch + 1) * run.per_epoch
            # processes under torchrun write together, so no clock may part them
            if run.world.size > 1 or time.monotonic() - run.saved_at >= config.checkpoint_seconds:
                _save(run, done=done)
            for model in models.values():
                model.eval()
            if on_epoch is not None:
                on_epoch(epoch)


def cosine_rate(step: int, *, steps: int, peak: float) -> float:
    """Learning rate of step (from 0): half a cosine from `peak` to 0 (Loshchilov and Hutter 2017, no restarts)."""
    return peak * 0.5 * (1.0 + math.cos(math.pi * step / max(1, steps)))


@dataclass(kw_only=True)
class _Run:
    """What all parts of one training share. `totals`: the losses since the last report, one row a step."""

    config: LoopConfig
    models: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    place: Path
    world: World
    log: EventLog | None
    per_epoch: int
    batches_per_epoch: int
    on_step: Callable[[int], None] | None
    meter: Meter | None
    totals: list[Tensor] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)
    graphed: StepGraphs | None = None

    @property
    def steps(self) -> int:
        return self.per_epoch * self.config.epochs

    @property
    def writer(self) -> EventLog | None:
        return self.log if self.world.rank == 0 else None

    def say(self, text: str) -> None:
        if self.writer is not None:
            self.writer.log(text)

    def size(self, step: int) -> int:
        """Batches of the group of this step; an epoch's last one may be short, and its gradient is still a mean."""
        first = step % self.per_epoch * self.config.accumulation
        return min(self.config.accumulation, self.batches_per_epoch - first)


def _epoch(
    run: _Run,
    *,
    epoch: int,
    done: int,
    batches: Callable[[int], Iterable[Batch]],
    loss: LossOf,
    advance: Callable[[int, float], None],
) -> None:
    for model in run.models.values():
        model.train()
    first = epoch * run.per_epoch
    start = max(first, done)
    # seeded before the first batch is drawn, so that a resumed epoch draws the same ones
    _seed(run, step=first)
    items = iter(batches(epoch))
    _seed(run, step=first)
    for _ in range((start - first) * run.config.accumulation):
        next(items, _END)
    began = time.monotonic()
    last: DFADLoss | Tensor | None = None
    for step in range(start, first + run.per_epoch):
        _seed(run, step=step)
        rate = cosine_rate(step, steps=run.steps, peak=run.config.lr)
        _rate_set(run.optimizer, rate)
        if run.graphed is None:
            result = _group(run, items, step=step, epoch=epoch, loss=loss)
            _update(run)
        else:
            result = run.graphed(_next(run, items, epoch=epoch), epoch / run.config.epochs)
            run.totals.append(_total(result).detach().float().reshape(1).clone())
        last = last if result is None else result
        if run.on_step is not None:
            run.on_step(step + 1)
        closing = step + 1 == first + run.per_epoch
        saving = bool(run.config.checkpoint_steps) and (step + 1) % run.config.checkpoint_steps == 0
        if closing or saving or (step + 1) % run.config.log_every == 0:
            advance(step + 1, _report(run, last, step=step, epoch=epoch, rate=rate))
        if saving and not closing:
            _save(run, done=step + 1)
    if next(items, _END) is not _END:
        raise RunError(f"epoch {epoch + 1} has more batches than the {run.batches_per_epoch} said")
    _report_alignment(run, last, seconds=time.monotonic() - began, steps=first + run.per_epoch - start)


def _group(run: _Run, items: Iterator[Batch], *, step: int, epoch: int, loss: LossOf) -> DFADLoss | Tensor | None:
    """Gradients of one group of batches, this process's share of them; returns the last loss."""
    size, result = run.size(step), None
    totals: dict[int, Tensor] = {}
    for index in range(size):
        batch = _next(run, items, epoch=epoch)
        if index % run.world.size != run.world.rank:
            continue
        result = loss(run.models["student"], batch, epoch / run.config.epochs)
        total = _total(result)
        (total / size).backward()
        totals[index] = total.detach().float()
    zero = torch.zeros((), device=run.parameters[0].device)
    run.totals.append(torch.stack([totals.get(index, zero) for index in range(run.config.accumulation)]))
    return result


def _graphed(run: _Run, *, loss: LossOf) -> StepGraphs:
    """Whole steps, update included, as CUDA graphs."""
    student = run.models["student"]

    def step(batch: Batch, progress: Tensor) -> DFADLoss | Tensor:
        result = loss(student, batch, progress)
        _total(result).backward()
        _update(run)
        return result

    return StepGraphs(step, device=run.parameters[0].device)


def _next(run: _Run, items: Iterator[Batch], *, epoch: int) -> Batch:
    batch = next(items, _END)
    if batch is _END:
        raise RunError(f"epoch {epoch + 1} has fewer batches than the {run.batches_per_epoch} said")
    return batch


def _total(result: DFADLoss | Tensor) -> Tensor:
    return result.total if isinstance(result, DFADLoss) else result


def _optimizer(parameters: list[nn.Parameter], *, config: LoopConfig) -> torch.optim.AdamW:
    if not config.graphs:
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    device = parameters[0].device
    if device.type != "cuda":
        raise RunError(f"graphs: the model is on {device}, CUDA graphs need a GPU")
    rate = torch.tensor(config.lr, device=device)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay, capturable=True, fused=True)


def _rate_set(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for entry in optimizer.param_groups:
        if isinstance(entry["lr"], Tensor):
            entry["lr"].fill_(rate)
        else:
            entry["lr"] = rate


def _update(run: _Run) -> None:
    gradients_sum(run.parameters, world=run.world)
    for entry in run.optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(entry["params"], run.config.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    buffers_mean(run.models, world=run.world)


def _report(run: _Run, last: DFADLoss | Tensor | None, *, step: int, epoch: int, rate: float) -> float:
    """One step event for the steps since the last one; returns their mean loss. Here the host waits for the device."""
    totals = torch.stack(run.totals)
    run.totals = []
    if run.world.size > 1:
        distributed.all_reduce(totals)
    values = totals.tolist()
    first = step + 1 - len(values)
    for number, row in enumerate(values, start=first):
        for index, value in enumerate(row):
            if not math.isfinite(value):
                at = number % run.per_epoch * run.config.accumulation + index + 1
                raise RunError(f"the loss is {value} in epoch {epoch + 1}, batch {at}")
    mean = sum(sum(row) / run.size(first + number) for number, row in enumerate(values)) / len(values)
    if run.writer is not None:
        run.writer.step(
            step + 1,
            steps=run.steps,
            epoch=epoch + 1,
            epochs=run.config.epochs,
            loss=mean,
            alpha=float(last.alpha) if isinstance(last, DFADLoss) else 0.0,
            lr=rate,
            align=last.align() if isinstance(last, DFADLoss) else {},
        )
    return mean


def _report_alignment(run: _Run, last: DFADLoss | Tensor | None, *, seconds: float, steps: int) -> None:
    """Once an epoch: cosine, CKA and weight of each pair in the last batch, and the time that alignment took."""
    spent = run.meter.read() if run.meter is not None else None
    if run.writer is None or not isinstance(last, DFADLoss):
        return
    columns = {"cos": last.cos, "cka": last.cka, "weight": last.weights}
    metrics = {
        f"{name}_{index}": float(value)
        for name, values in columns.items()
        for index, value in enumerate(values.detach().tolist(), start=1)
    }
    if spent is not None and steps:
        metrics |= {"align_ms": 1e3 * spent / steps, "step_ms": 1e3 * seconds / steps, "align_share": spent / seconds}
        run.say(f"alignment forward: {1e3 * spent / steps:.2f} of {1e3 * seconds / steps:.2f} ms a step")
    if metrics:
        run.writer.eval("alignment", metrics=metrics)


def _save(run: _Run, *, done: int) -> None:
    if run.world.rank == 0:
        checkpoint_save(run.place, models=run.models, optimizer=run.optimizer, config=run.config, steps_done=done)
    run.saved_at = time.monotonic()
    if run.world.size > 1:
        distributed.barrier()


def _seed(run: _Run, *, step: int) -> None:
    rank = ("rank", run.world.rank) if run.world.rank else ()
    torch.manual_seed(derive(run.config.seed, "step", step, *rank))


def _where(done: int, *, per: int, epochs: int) -> str:
    epoch, step = divmod(done, per)
    within = f", step {step} of {per}" if step else ""
    return f"epoch {epoch} of {epochs}{within}"


@contextmanager
def _bar(run: _Run, *, done: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar on stderr, where a person sits before it."""
    if run.world.rank != 0 or not sys.stderr.isatty():
        yield lambda steps_done, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=run.steps, completed=done)

        def advance(steps_done: int, loss: float) -> None:
            progress.update(task, completed=steps_done, description=f"loss {loss:.4g}")

        yield advance
