"""A fraud run from data to artifact: teacher, DFAD student, INT8, comparison with the champion."""

from pathlib import Path

import numpy as np
import torch

from ml_core.events import EventLog
from ml_core.train.fraud_data import Batch
from ml_core.train.fraud_fit import predict
from ml_core.train.fraud_stages import (
    FraudTraining,
    Rows,
    Teachers,
    calibrate,
    device_of,
    fit_student,
    fit_teachers,
    save_checkpoint,
    weighted_metrics,
)
from ml_core.train.fraud_teacher import tree_outputs


def distil(
    training: FraudTraining,
    rows: Rows,
    folder: Path,
    *,
    log: EventLog,
    seed: int,
    start: dict[str, torch.Tensor] | None = None,
) -> tuple[Teachers, torch.nn.Module]:
    """Teachers and the calibrated float student, with their metrics on the guard rows and a checkpoint."""
    data = Batch.of(rows.train, device=device_of(training))
    guard = Batch.of(rows.guard, device=device_of(training))
    log.stage("Teacher", index=2, of=5)
    teachers = fit_teachers(training, rows, data, log=log, seed=seed)
    trees = tree_outputs(teachers.booster, rows.guard.features, threads=training.trees.threads).logits
    log.eval("guard: LightGBM", metrics=weighted_metrics(trees, rows.guard))
    if teachers.transformer is not None:
        deep = predict(teachers.transformer, guard).numpy()
        log.eval("guard: transformer", metrics=weighted_metrics(deep, rows.guard))
        log.eval("guard: teacher", metrics=weighted_metrics(0.5 * (trees + deep), rows.guard))
    log.stage("Distil", index=3, of=5)
    student = fit_student(training, data, teachers, log=log, seed=seed, start=start)
    calibrate(student, guard)
    logits = predict(student, guard)
    log.eval("guard: student", metrics=weighted_metrics(np.asarray(logits), rows.guard))
    save_checkpoint(folder / "checkpoints", teachers, student)
    return teachers, student
