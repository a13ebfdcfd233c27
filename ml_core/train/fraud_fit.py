"""Optimisation of the fraud models: a transformer on labels alone, and the student by DFAD from its teachers."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.features import Features
from ml_core.events import EventLog
from ml_core.models.fraud_student import FraudStudent, compress
from ml_core.train.fraud_data import Batch, batches
from ml_core.train.fraud_teacher import teacher_features


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSettings:
    """How long and how fast: the fit ends after `epochs` or, if that comes first, after `seconds`."""

    epochs: int = 3
    batch: int = 2_048
    rate: float = 2e-3
    decay: float = 0.01
    seconds: float = 3_600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What one step reports: the loss to differentiate, and alpha and alignment by level where there are any."""

    total: Tensor
    task: Tensor
    alpha: float = 0.0
    align: dict[str, float] | None = None


def set_scales(model: FraudStudent, batch: Batch) -> None:
    """Mean and spread of the compressed features, from training rows only."""
    sample = compress(batch.features[:500_000, : model.config.features])
    model.feature_mean.copy_(sample.mean(0))
    model.feature_std.copy_(sample.std(0).clamp_min(1e-3))


def task_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Weighted binary cross-entropy; rows of weight 0 have no label."""
    losses = functional.binary_cross_entropy_with_logits(logits, batch.fraud, reduction="none")
    return (losses * batch.weight).sum() / batch.weight.sum().clamp_min(1e-6)


def fit_labels(model: FraudStudent, data: Batch, settings: FitSettings, *, log: EventLog, seed: int) -> None:
    """Train on labels alone."""

    def loss(batch: Batch, _: Tensor, __: float) -> Loss:
        with _autocast(batch.features.device):
            value = task_loss(model(*batch.inputs()).float(), batch)
        return Loss(total=value, task=value)

    _fit(model, data, settings, loss=loss, extra=[], log=log, seed=seed)


def fit_distil(
    student: FraudStudent,
    data: Batch,
    settings: FitSettings,
    *,
    tree_logits: Tensor,
    tree_leaves: Tensor,
    transformer: FraudStudent | None,
    dfad: DFADConfig,
    log: EventLog,
    seed: int,
) -> None:
    """Train the student by DFAD; the teachers' features are aligned with the student's, their mean logit is matched."""
    teacher_widths: tuple[int, ...] = (tree_leaves.shape[1],)
    pooled = tree_leaves.shape[1]
    if transformer is not None:
        teacher_widths = (transformer.config.d,) * (transformer.config.layers - 1)
        pooled += transformer.config.d
    align = DFAD(
        dfad,
        teacher_widths,
        (student.config.d,) * (student.config.layers - 1),
        teacher_pooled=pooled,
        student_pooled=student.config.d,
    ).to(data.features.device)

    def loss(batch: Batch, index: Tensor, progress: float) -> Loss:
        with _autocast(batch.features.device):
            teacher = teacher_features(
                tree_logits=tree_logits[index],
                tree_leaves=tree_leaves[index],
                transformer=transformer,
                inputs=batch.inputs(),
                student=student.config,
            )
            taps = student.taps(*batch.inputs())
        own = Features(
            layers=tuple(layer.float() for layer in taps.layers),
            mask=taps.mask,
            pooled=taps.pooled.float(),
            logits=taps.logits.float()[:, None],
        )
        result = align(own, teacher, task_loss(taps.logits.float(), batch), progress)
        return Loss(total=result.total, task=result.task, alpha=result.alpha, align=result.align())

    _fit(student, data, settings, loss=loss, extra=list(align.parameters()), log=log, seed=seed)


@torch.inference_mode()
def predict(model: nn.Module, data: Batch) -> Tensor:
    """Logits of all rows, on the CPU."""
    model.eval()
    size = 256 if data.features.device.type == "cpu" else 4_096  # on a CPU a larger one falls out of the cache
    parts = []
    for begin in range(0, len(data), size):
        index = torch.arange(begin, min(begin + size, len(data)), device=data.features.device)
        parts.append(model(*data.take(index).inputs()).float().cpu())
    return torch.cat(parts)


def fit_calibration(logits: Tensor, data: Batch) -> tuple[float, float]:
    """Platt scaling (scale, shift) by Newton steps on weighted rows that training never saw (Platt, 1999)."""
    x = torch.stack([logits.double(), torch.ones(len(logits), dtype=torch.float64)], 1)
    y, w = data.fraud.cpu().double(), data.weight.cpu().double()
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(25):
        p = torch.sigmoid(x @ parameters)
        gradient = x.T @ (w * (p - y))
        hessian = (x * (w * p * (1 - p))[:, None]).T @ x + 1e-6 * torch.eye(2, dtype=torch.float64)
        parameters = parameters - torch.linalg.solve(hessian, gradient)
    return float(parameters[0]), float(parameters[1])


def _fit(
    model: FraudStudent,
    data: Batch,
    settings: FitSettings,
    *,
    loss: Callable[[Batch, Tensor, float], Loss],
    extra: list[nn.Parameter],
    log: EventLog,
    seed: int,
) -> None:
    """AdamW with warm-up and cosine; progress is the larger of the shares of steps and of seconds used."""
    device = data.features.device
    size = min(settings.batch, len(data))
    per_epoch = len(data) // size
    steps = settings.epochs * per_epoch
    optimiser = torch.optim.AdamW(
        [*model.parameters(), *extra], lr=settings.rate, weight_decay=settings.decay, fused=device.type == "cuda"
    )
    order = batches(len(data), size=size, generator=torch.Generator().manual_seed(seed))
    began = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        progress = min(1.0, max(step / steps, (time.monotonic() - began) / settings.seconds))
        rate = settings.rate * min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimiser.param_groups:
            group["lr"] = rate
        index = next(order).to(device)
        result = loss(data.take(index), index, progress)
        optimiser.zero_grad(set_to_none=True)
        result.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % max(1, steps // 100) == 0 or step == 1 or progress >= 1.0:
            log.step(
                step,
                steps=steps,
                epoch=1 + (step - 1) // per_epoch,
                epochs=settings.epochs,
                loss=float(result.total.detach()),
                alpha=result.alpha,
                lr=rate,
                align=result.align,
            )
        if progress >= 1.0:
            break
    model.eval()


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
