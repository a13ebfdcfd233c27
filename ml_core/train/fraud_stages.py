"""The stages of a fraud run up to the float student: rows, teachers, distillation; each leaves its checkpoint."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from ml_core.config import to_mapping
from ml_core.data.extra_inputs import ExtraInputs
from ml_core.data.fraud_features import CHANNELS, FEATURES
from ml_core.data.handbook import Table
from ml_core.distill.dfad import DFADConfig
from ml_core.errors import RunError
from ml_core.events import EventLog
from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig
from ml_core.seed import derive, numpy_generator, seed_all
from ml_core.train.fraud_data import BankSize, Batch, Samples, concatenate, many_banks, table_samples
from ml_core.train.fraud_fit import FitSettings, fit_calibration, fit_distil, fit_labels, predict, set_scales
from ml_core.train.fraud_teacher import TreeOutputs, TreeSettings, fit_trees, tree_outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class FraudTraining:
    """Everything that a fraud run depends on. `banks` > 0 trains on simulated banks, 0 on the table given.

    protocol: how a table is divided: its last week held back ("table"), or by the Handbook's weeks (fraud_weeks.py)
    with first_day (ISO; "": the newest), warm_days, guard_of and unlabelled_rows.
    """

    name: str
    banks: int = 0
    guard_banks: int = 0
    bank_size: BankSize = field(default_factory=BankSize)
    first_bank: int = 10_000
    teacher: Literal["lightgbm", "lightgbm+transformer"] = "lightgbm"
    trees: TreeSettings = field(default_factory=TreeSettings)
    transformer: FraudStudentConfig = FraudStudentConfig(
        features=len(FEATURES), channels=len(CHANNELS), card_tokens=24, terminal_tokens=32, d=128, layers=3, ffn=512,
        wide=512,
    )  # fmt: skip
    transformer_fit: FitSettings = field(default_factory=FitSettings)
    student: FraudStudentConfig = FraudStudentConfig(features=len(FEATURES), channels=len(CHANNELS))
    student_fit: FitSettings = field(default_factory=FitSettings)
    dfad: DFADConfig = field(default_factory=DFADConfig)
    quantize_rows: int = 100_000
    table_rows: int = 120_000
    protocol: Literal["table", "week", "past"] = "table"
    first_day: str = ""
    warm_days: int = 30
    guard_of: int = 12
    unlabelled_rows: int = 0
    from_champion: bool = False
    workers: int = 0
    device: str = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Training rows, guard rows that no fit sees (calibration, metrics), and the digest of what they came from.

    `extras` says what stands behind the features, where a mapping declares more. Of `unlabelled` rows the labels are
    never looked at: the student learns the teachers' answers there.
    """

    train: Samples
    guard: Samples
    digest: str
    extras: ExtraInputs | None = None
    unlabelled: Samples | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Teachers:
    """The fitted teachers and the trees' answers on the training rows."""

    booster: lgb.Booster
    transformer: FraudStudent | None
    outputs: TreeOutputs

    @property
    def digest(self) -> str:
        """SHA-256 of the trees' text and the transformer's weights."""
        sha = hashlib.sha256(self.booster.model_to_string().encode())
        if self.transformer is not None:
            for name, tensor in sorted(self.transformer.state_dict().items()):
                sha.update(name.encode() + tensor.cpu().numpy().tobytes())
        return sha.hexdigest()


def device_of(training: FraudTraining) -> torch.device:
    """The device that the run names; "auto" takes CUDA where there is one."""
    if training.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(training.device)


def bank_rows(training: FraudTraining, *, seed: int) -> Rows:
    """Rows of simulated banks; the guard banks have seeds of their own."""
    workers = training.workers or os.cpu_count() or 1
    first = training.first_bank + 100_000 * seed
    seeds = list(range(first, first + training.banks + training.guard_banks))
    train = many_banks(seeds[: training.banks], training.bank_size, workers=workers)
    guard = many_banks(seeds[training.banks :], training.bank_size, workers=workers)
    what = json.dumps({"banks": seeds, "size": to_mapping(training.bank_size)}, sort_keys=True)
    return Rows(train=train, guard=guard, digest=hashlib.sha256(what.encode()).hexdigest())


def table_rows(table: Table, *, limit: int, seed: int, delay_days: int = 7, guard_days: int = 7) -> Rows:
    """Rows of one bank: the last week is the guard, the week before it has no labels yet, the rest trains.

    At most about `limit` rows train: all frauds and a share of the genuine ones, weighted back.
    """
    split = split_table(table, limit=limit, seed=seed, delay_days=delay_days, guard_days=guard_days)
    both = table_samples(table, keep=split.train | split.guard, weight=split.weight)
    n = int(split.train.sum())
    return Rows(train=both.take(slice(0, n)), guard=both.take(slice(n, None)), digest=table_digest(table))


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Masks over a table's rows, and every row's weight."""

    train: npt.NDArray[np.bool_]
    guard: npt.NDArray[np.bool_]
    weight: npt.NDArray[np.float32]


def split_table(table: Table, *, limit: int, seed: int, delay_days: int = 7, guard_days: int = 7) -> Split:
    """Which rows train and which are held back, as of table_rows. Raises RunError for too short a table."""
    day = table.day - table.day[0]
    last = int(day[-1]) + 1
    end = last - guard_days - delay_days
    warm = min(30, max(7, end - 14))
    usable = (day >= warm) & (day < end)
    if end - warm < 7 or table.fraud[usable].sum() < 20:
        raise RunError(f"{last} days are too few: at least 7 to learn from, 14 to hold back, and 20 known frauds")
    share = min(1.0, limit / max(1, int((usable & ~table.fraud).sum())))
    drawn = numpy_generator(seed, "thin").random(len(table)) < share
    guard = day >= last - guard_days
    weight = np.where(table.fraud | guard, 1.0, 1.0 / share).astype(np.float32)
    return Split(train=usable & (table.fraud | drawn), guard=guard, weight=weight)


def table_digest(table: Table) -> str:
    """SHA-256 of times, amounts and labels."""
    sha = hashlib.sha256()
    for column in (table.at, table.cents, table.fraud):
        sha.update(np.ascontiguousarray(column).tobytes())
    return sha.hexdigest()


def fit_teachers(training: FraudTraining, rows: Rows, data: Batch, *, log: EventLog, seed: int) -> Teachers:
    """LightGBM, and beside it (on a GPU: at the same time) the transformer."""

    def trees() -> tuple[lgb.Booster, TreeOutputs]:
        booster = fit_trees(rows.train, training.trees, seed=derive(seed, "trees") % 2**31, extras=rows.extras)
        log.log(f"LightGBM: {booster.num_trees()} trees fitted")
        return booster, tree_outputs(booster, rows.train.features, threads=training.trees.threads)

    if training.teacher == "lightgbm":
        booster, outputs = trees()
        return Teachers(booster=booster, transformer=None, outputs=outputs)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(trees)
        if data.features.device.type == "cpu":
            pending.result()
        seed_all(derive(seed, "transformer"))
        transformer = FraudStudent(training.transformer).to(data.features.device)
        set_scales(transformer, data)
        fit_labels(transformer, data, training.transformer_fit, log=log, seed=derive(seed, "order-t") % 2**31)
        booster, outputs = pending.result()
    return Teachers(booster=booster, transformer=transformer, outputs=outputs)


def with_unlabelled(training: FraudTraining, rows: Rows, teachers: Teachers) -> tuple[Samples, Teachers]:
    """What the student learns from: the training rows and behind them the unlabelled ones, which weigh nothing in the
    loss on labels; and the teachers with their answers on both."""
    if rows.unlabelled is None:
        return rows.train, teachers
    more = rows.unlabelled
    blank = replace(more, fraud=np.zeros_like(more.fraud), weight=np.zeros_like(more.weight))
    answers = tree_outputs(teachers.booster, more.features, threads=training.trees.threads)
    outputs = TreeOutputs(
        logits=np.concatenate([teachers.outputs.logits, answers.logits]),
        leaves=np.concatenate([teachers.outputs.leaves, answers.leaves]),
    )
    return concatenate([rows.train, blank]), replace(teachers, outputs=outputs)


def fit_student(
    training: FraudTraining,
    data: Batch,
    teachers: Teachers,
    *,
    log: EventLog,
    seed: int,
    start: dict[str, torch.Tensor] | None = None,
) -> FraudStudent:
    """The float student, distilled; `start` gives it first weights (the champion's), else they are random."""
    seed_all(derive(seed, "student"))
    student = FraudStudent(training.student).to(data.features.device)
    if start is None:
        set_scales(student, data)
    else:
        student.load_state_dict(start)
    fit_distil(
        student,
        data,
        training.student_fit,
        tree_logits=torch.from_numpy(teachers.outputs.logits).to(data.features.device),
        tree_leaves=torch.from_numpy(teachers.outputs.leaves).to(data.features.device),
        transformer=teachers.transformer,
        dfad=training.dfad,
        log=log,
        seed=derive(seed, "order-s") % 2**31,
    )
    return student


def calibrate(student: FraudStudent, guard: Batch) -> None:
    """Set the served scale and shift from guard rows, and the reasons' baseline: their ordinary genuine transaction."""
    genuine = torch.nonzero(guard.fraud == 0).squeeze(1)[:100_000]
    ordinary = guard.take(genuine)
    width = len(student.reference_features)
    student.reference_features.copy_(ordinary.features[:, :width].median(0).values)
    codes = slice(student.config.features, width)
    student.reference_features[codes] = ordinary.features[:, codes].mode(0).values
    student.reference_card.copy_(ordinary.card.mean(0)[: student.config.card_tokens])
    student.reference_terminal.copy_(ordinary.terminal.mean(0)[: student.config.terminal_tokens])
    scale, shift = fit_calibration(predict(student, guard), guard)
    student.calibration.copy_(torch.tensor([scale, shift]))


def weighted_metrics(score: np.ndarray, samples: Samples) -> dict[str, float]:
    """AUC and average precision with the thinned genuine rows weighted back."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "auc": float(roc_auc_score(samples.fraud, score, sample_weight=samples.weight)),
        "ap": float(average_precision_score(samples.fraud, score, sample_weight=samples.weight)),
    }


def save_checkpoint(folder: Path, teachers: Teachers, student: FraudStudent) -> None:
    """Teachers and float student as text and safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    teachers.booster.save_model(str(folder / "trees.txt"))
    if teachers.transformer is not None:
        save_file(_plain(teachers.transformer), folder / "transformer.safetensors")
    save_file(_plain(student), folder / "student.safetensors")


def load_model(path: Path, config: FraudStudentConfig) -> FraudStudent:
    """A float model of a checkpoint."""
    model = FraudStudent(config)
    model.load_state_dict(load_file(path))
    return model.eval()


def _plain(model: FraudStudent) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
