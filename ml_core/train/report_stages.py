"""Stages that several runs of the report student share: the CNN teacher, and what a watcher is told."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from ml_core.models.cnn_teacher import CnnTeacher, stem_weights_load
from ml_core.models.report_student import ReportStudent, ReportStudentConfig
from ml_core.train.report_films import labels_matrix, presence
from ml_core.train.report_fit import Progress, teacher_fit
from ml_core.train.report_gather import Films, ReportParams
from ml_core.train.report_loop import FitOptions
from ml_core.train.report_scores import auc_mean, presence_predict

if TYPE_CHECKING:
    from ml_core.events import EventLog


def cnn_fit(
    films: Films, params: ReportParams, *, seed: int, stem: dict[str, Tensor], log: "EventLog", seconds: float = 0.0
) -> CnnTeacher:
    """Fit the CNN teacher, from the ImageNet tensors `stem` where there are any."""
    teacher = CnnTeacher()
    if stem:
        log.log(f"{stem_weights_load(teacher.net, stem)} tensors of the teacher start from ImageNet")
    options = FitOptions(
        steps=params.teacher_steps,
        batch=params.batch,
        rate=params.teacher_rate,
        device=params.device,
        seed=seed,
        seconds=seconds,
    )
    return teacher_fit(teacher, films.train, options, reporter(log, options))


def student_start(config: ReportStudentConfig, *, stem: dict[str, Tensor], log: "EventLog") -> ReportStudent:
    """A report model with random weights, its convolutional stem from `stem` where there are tensors."""
    student = ReportStudent(config)
    if stem:
        log.log(f"{stem_weights_load(student.encoder.patch_embed, stem)} tensors of the stem start from ImageNet")
    return student


def reporter(log: "EventLog", options: FitOptions, *, epochs: int = 1) -> Progress:
    """Writes steps into the log."""

    def report(step: int, loss: float, rate: float, alpha: float, align: dict[str, float]) -> None:
        log.step(step, steps=options.steps, epoch=1, epochs=epochs, loss=loss, alpha=alpha, lr=rate, align=align)

    return report


def auc_figures(model: nn.Module, films: Films, *, device: str) -> dict[str, float]:
    """Mean ROC-AUC on simulated films not learnt from ("sim/mean") and on labelled films held out ("real/mean")."""
    check = films.simulated_check
    sets = {"sim": (presence(check), check.images)}
    if films.held_out_films is not None:
        sets["real"] = (labels_matrix(films.held_out), films.held_out_films.images)
    means = {
        f"{name}/mean": auc_mean(truth, presence_predict(model, images, device=device))["mean"]
        for name, (truth, images) in sets.items()
    }
    return {name: value for name, value in means.items() if np.isfinite(value)}
