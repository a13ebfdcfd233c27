"""Fitting the CNN teacher and, by DFAD from it, the radiology student, on films of several kinds in fixed shares."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ml_core.contracts import FindingState
from ml_core.data.findings import FINDINGS
from ml_core.data.report_tokens import PAD, STATE_INDEX
from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.features import Features
from ml_core.models.cnn_teacher import CnnTeacher, presence_logit
from ml_core.models.report_student import ReportStudent, Seen
from ml_core.train.report_films import LABELLED, OTHER, SIMULATED, UNLABELLED, FilmSet
from ml_core.train.report_losses import box_loss, gate_loss, pictures_vary, states_loss, text_loss

_SHARES_TEACHER = {SIMULATED: 0.4, LABELLED: 0.6}
_SHARES_STUDENT = {SIMULATED: 0.50, LABELLED: 0.22, UNLABELLED: 0.12, OTHER: 0.16}
_HEAVY = 2.0  # weight of a labelled film's findings: there are few of them


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """How long and how fast. `report` is called as (step, loss, lr, alpha, align) every `every` steps."""

    steps: int
    batch: int
    rate: float
    device: str = "cpu"
    seed: int = 0
    decay: float = 0.05
    ema: float = 0.998
    every: int = 20


Progress = Callable[[int, float, float, float, dict[str, float]], None]


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


def teacher_fit(teacher: CnnTeacher, films: FilmSet, options: FitOptions, report: Progress) -> CnnTeacher:
    """Fit the CNN on what films show; returns its running average, in eval mode."""
    batches = FilmBatches(films, _SHARES_TEACHER, device=options.device, seed=options.seed)
    teacher.to(options.device).train()
    loop = _Loop(teacher, [teacher], options)
    for step in range(options.steps):
        batch = batches.draw(options.batch)
        with loop.autocast():
            logits = teacher(batch.images)
        target = batch.present * 0.96 + 0.02
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        share = batch.known * batch.weight[:, None]
        total = (loss * share).sum() / share.sum()
        loop.step(total)
        if (step + 1) % options.every == 0:
            report(step + 1, float(total.detach()), loop.rate, 0.0, {})
    return loop.average().eval()


def student_fit(
    student: ReportStudent,
    teacher: nn.Module,
    films: FilmSet,
    options: FitOptions,
    report: Progress,
    *,
    config: DFADConfig | None = None,
    check: Callable[[ReportStudent, int], None] | None = None,
) -> ReportStudent:
    """Fit the student by DFAD from `teacher` (a CnnTeacher or a student); returns its running average, in eval mode."""
    batches = FilmBatches(films, _SHARES_STUDENT, device=options.device, seed=options.seed)
    student.to(options.device).train()
    teacher.to(options.device).eval()
    side = student.config.image_size // 16
    width = student.encoder.embed_dim
    layers, pooled = _teacher_widths(teacher)
    dfad = DFAD(
        config or DFADConfig(alpha=0.4, token_share=1.0),
        layers,
        (width,) * student.config.encoder_depth,
        teacher_pooled=pooled,
        student_pooled=width,
    ).to(options.device)
    loop = _Loop(student, [student, dfad], options)
    for step in range(options.steps):
        batch = batches.draw(options.batch)
        with loop.autocast():
            seen = student.forward_seen(batch.images)
            task = _task(student, seen, batch)
            with torch.no_grad():
                wanted = _teacher_features(teacher, batch.images, side=side)
        chest = batch.kind != OTHER
        parts = dfad(_rows(_student_features(seen), chest), _rows(wanted, chest), task, step / options.steps)
        loop.step(parts.total)
        if (step + 1) % options.every == 0:
            report(step + 1, float(parts.total.detach()), loop.rate, parts.alpha, parts.align())
            if check is not None:
                check(loop.average(), step + 1)
    return loop.average().eval()


def presence_predict(model: nn.Module, images: np.ndarray, *, device: str = "cpu", batch: int = 32) -> np.ndarray:
    """Probability of presence (n 14) for prepared uint8 images, by a teacher or a student."""
    model.eval()
    outputs = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            x = torch.from_numpy(images[start : start + batch]).to(device)[:, None].float() / 255
            logits = presence_logit(model.forward_seen(x).states) if isinstance(model, ReportStudent) else model(x)
            outputs.append(logits.float().sigmoid().cpu().numpy())
    return np.concatenate(outputs)


def _task(student: ReportStudent, seen: Seen, batch: FilmBatch) -> Tensor:
    states = states_loss(seen, batch.states, batch.known, batch.weight)
    total = states * 2 + gate_loss(seen, batch.kind) * 0.5 + box_loss(seen, batch.boxes) * 0.2
    told = (batch.texts != PAD).any(1)
    if not bool(told.any()):
        return total
    memory = student.memory(_seen_rows(seen, told), batch.states[told])
    return total + text_loss(student.forward_text(memory, batch.texts[told]), batch.texts[told])


def _seen_rows(seen: Seen, rows: Tensor) -> Seen:
    return Seen(
        tokens=seen.tokens[rows],
        layers=(),
        gate=seen.gate[rows],
        states=seen.states[rows],
        attention=seen.attention[rows],
        memory=seen.memory[rows],
        contexts=seen.contexts[rows],
    )


def _student_features(seen: Seen) -> Features:
    layers = tuple(layer[:, 1:].float() for layer in seen.layers)
    return Features(
        layers=layers, pooled=seen.tokens[:, 0].float(), logits=presence_logit(seen.states.float())[..., None]
    )


def _teacher_features(teacher: nn.Module, images: Tensor, *, side: int) -> Features:
    if isinstance(teacher, ReportStudent):
        return _student_features(teacher.forward_seen(images))
    layers, pooled, logits = teacher.features(images, side=side)
    return Features(
        layers=tuple(layer.float() for layer in layers), pooled=pooled.float(), logits=logits.float()[..., None]
    )


def _teacher_widths(teacher: nn.Module) -> tuple[tuple[int, ...], int]:
    if isinstance(teacher, ReportStudent):
        return (teacher.encoder.embed_dim,) * teacher.config.encoder_depth, teacher.encoder.embed_dim
    return teacher.widths, teacher.net.num_features


def _rows(features: Features, rows: Tensor) -> Features:
    logits = None if features.logits is None else features.logits[rows]
    return Features(layers=tuple(layer[rows] for layer in features.layers), pooled=features.pooled[rows], logits=logits)


class _Loop:
    """Optimiser, schedule, mixed precision and the running average of one model."""

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
        self.started = time.monotonic()

    def autocast(self) -> torch.autocast:
        return torch.autocast("cuda" if self.cuda else "cpu", dtype=torch.bfloat16, enabled=self.cuda)

    def step(self, loss: Tensor) -> None:
        options = self.options
        warm = min(1.0, (self.at + 1) / max(1, min(200, options.steps // 10)))
        self.rate = options.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.at / options.steps)))
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
        return self.mean


def auc_mean(truth: np.ndarray, scores: np.ndarray, *, least: int = 5) -> dict[str, float]:
    """ROC-AUC of each finding with at least `least` positives, and their mean under "mean"."""
    from sklearn.metrics import roc_auc_score

    found = {
        name: float(roc_auc_score(truth[:, i], scores[:, i]))
        for i, name in enumerate(FINDINGS)
        if least <= truth[:, i].sum() < len(truth)
    }
    return {**found, "mean": float(np.mean(list(found.values()))) if found else float("nan")}
