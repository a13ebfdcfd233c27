"""Fitting the CNN teacher and report models: one or several on the same batches, each by DFAD from its teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.spec import DFADLoss
from ml_core.models.cnn_teacher import CnnTeacher
from ml_core.models.report_student import ReportStudent, Seen
from ml_core.train.precision import tensor_cores
from ml_core.train.report_batches import FilmBatch, FilmBatches
from ml_core.train.report_films import LABELLED, OTHER, SIMULATED, UNLABELLED, FilmSet
from ml_core.train.report_loop import Course, FitOptions, Loop
from ml_core.train.report_losses import box_loss, gate_loss, states_loss, text_loss, words_kl
from ml_core.train.report_teachers import Lesson, Teacher, rows_of, student_features

_SHARES_TEACHER = {SIMULATED: 0.4, LABELLED: 0.6}
_SHARES_STUDENT = {SIMULATED: 0.50, LABELLED: 0.22, UNLABELLED: 0.12, OTHER: 0.16}
_QUARTERS = 4
_WORDS = 0.5  # share of the teacher's words in the loss of words

M = TypeVar("M", bound=nn.Module)
Progress = Callable[[int, float, float, float, dict[str, float]], None]
Check = Callable[[str, ReportStudent, int], None]


@dataclass(kw_only=True)
class Pupil:
    """A report model to be fitted, and who teaches it: `teacher` None is plain cross-entropy."""

    name: str
    model: ReportStudent
    teacher: Teacher | None
    config: DFADConfig = field(default_factory=lambda: DFADConfig(alpha=0.4, token_share=1.0))


def teacher_fit(teacher: CnnTeacher, films: FilmSet, options: FitOptions, report: Progress) -> CnnTeacher:
    """Fit the CNN on what films show; returns its running average, in eval mode."""
    batches = FilmBatches(films, _SHARES_TEACHER, device=options.device, seed=options.seed)
    teacher = _placed(teacher, options).train()
    loop, course = Loop(teacher, [teacher], options), Course(options)
    while course.progress < 1:
        batch = batches.draw(options.batch)
        with loop.autocast():
            logits = teacher(batch.images)
        target = batch.present * 0.96 + 0.02
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        share = batch.known * batch.weight[:, None]
        total = (loss * share).sum() / share.sum()
        loop.step(total, progress=course.progress)
        course.at += 1
        if course.at % options.every == 0:
            report(course.at, float(total.detach()), loop.rate, 0.0, {})
    return loop.average()


def students_fit(
    pupils: Sequence[Pupil], films: FilmSet, options: FitOptions, report: Progress, *, check: Check | None = None
) -> list[ReportStudent]:
    """Fit every pupil on the same batches, varied alike; returns their running averages, in eval mode.

    What differs between the pupils is then their teaching alone. `report` is told of the first; `check`, if given, is
    called with each one's name and average a quarter of the way, half-way and so on.
    """
    batches = FilmBatches(films, _SHARES_STUDENT, device=options.device, seed=options.seed)
    desks = [_Desk(pupil, options) for pupil in pupils]
    teachers = {id(pupil.teacher): pupil.teacher for pupil in pupils if pupil.teacher is not None}
    side = pupils[0].model.config.image_size // 16
    course, quarter = Course(options), 1
    with tensor_cores():
        while (progress := course.progress) < 1:
            batch = batches.draw(options.batch)
            with torch.no_grad(), desks[0].loop.autocast():
                lessons = {key: teacher.lesson(batch, side=side) for key, teacher in teachers.items()}
            losses = [desk.learn(batch, lessons.get(id(desk.pupil.teacher)), progress=progress) for desk in desks]
            course.at += 1
            if course.at % options.every == 0:
                first = losses[0]
                report(course.at, float(first.total.detach()), desks[0].loop.rate, float(first.alpha), first.align())
            if check is not None and course.progress >= quarter / _QUARTERS:
                quarter = 1 + int(course.progress * _QUARTERS)
                for desk in desks:
                    check(desk.pupil.name, desk.average(), course.at)
    return [desk.average() for desk in desks]


class _Desk:
    """One pupil with its loss and its optimiser."""

    def __init__(self, pupil: Pupil, options: FitOptions) -> None:
        self.pupil = pupil
        model, teacher = _placed(pupil.model, options).train(), pupil.teacher
        widths = (model.encoder.embed_dim,) * model.config.encoder_depth
        if teacher is not None:
            teacher.to(options.device).eval()
        self.dfad = DFAD(
            pupil.config if teacher is not None else DFADConfig(levels=(), kl_share=0.0, alpha=0.0),
            widths if teacher is None else teacher.widths,
            widths,
            teacher_pooled=widths[-1] if teacher is None else teacher.pooled_width,
            student_pooled=widths[-1],
        ).to(options.device)
        self.loop = Loop(model, [model, self.dfad], options)

    def learn(self, batch: FilmBatch, lesson: Lesson | None, *, progress: float) -> DFADLoss:
        """One step."""
        model = self.pupil.model
        with self.loop.autocast():
            seen = model.forward_seen(batch.images)
            task = _task(model, seen, batch, words=None if lesson is None else lesson.words)
        wanted = None if lesson is None else rows_of(lesson.features, batch.chest)
        presence_only = wanted is not None and wanted.logits is not None and wanted.logits.shape[-1] == 1
        own = rows_of(student_features(seen, presence_only=presence_only), batch.chest)
        parts = self.dfad(own, wanted, task, progress)
        self.loop.step(parts.total, progress=progress)
        return parts

    def average(self) -> ReportStudent:
        return self.loop.average()


def _task(model: ReportStudent, seen: Seen, batch: FilmBatch, *, words: Tensor | None) -> Tensor:
    """What the labels say of a batch, with the teacher's `words` (t w v) beside the true ones."""
    states = states_loss(seen, batch.states, batch.known, batch.weight)
    total = states * 2 + gate_loss(seen, batch.kind) * 0.5 + box_loss(seen, batch.boxes) * 0.2
    told = batch.told
    if not bool(told.any()):
        return total
    texts = batch.texts[told]
    logits = model.forward_text(model.memory(seen.rows(told), batch.states[told]), texts)
    if words is None:
        return total + text_loss(logits, texts)
    return total + (1 - _WORDS) * text_loss(logits, texts) + _WORDS * words_kl(logits, texts, teacher=words)


def _placed(model: M, options: FitOptions) -> M:
    """On the device; there convolutions run as the GPU likes them, channels last."""
    if options.device.startswith("cuda"):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return model.to(options.device)
