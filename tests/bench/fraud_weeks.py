"""The fraud student trained on the Handbook's own weeks: `train` on a GPU machine, then `evaluate` anywhere.

`train` replays the transactions once and gives every cell (protocol x fold) a process: teachers, then the students one
after the other, each in the time that is left. Cells come in the order of ORDER; what the clock does not allow is left
out and named in the log. It leaves, in OUT:
  scores/<protocol>-<first day>-<system>.npz   `score`: the dense rank (uint16) of each test row's score; rows are those
                                               of handbook.fold, in order, so that AUC, AP and CP@100 are exact
  cells.jsonl                                  one line a cell and system: its metrics, Brier and log loss, seconds
Neither may be committed: they come from files without a licence. `evaluate` is tests/bench/fraud_weeks_evaluate.py.
"""

import argparse
import json
import multiprocessing
import sys
import time
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ml_core import artifacts
from ml_core.contracts import ModelKind, RunSpec
from ml_core.data.fraud_features import CONTEXT
from ml_core.data.handbook import Table, fold, protocol_scores, read_table
from ml_core.events import EventLog
from ml_core.models.fraud_student import FraudStudentConfig
from ml_core.train.fraud import float_state, quantize
from ml_core.train.fraud_data import Batch, Samples, table_samples
from ml_core.train.fraud_fit import FitSettings, predict
from ml_core.train.fraud_presets import training_of
from ml_core.train.fraud_stages import (
    FraudTraining,
    Rows,
    Teachers,
    calibrate,
    device_of,
    fit_student,
    fit_teachers,
    with_unlabelled,
)
from ml_core.train.fraud_teacher import tree_outputs
from ml_core.train.fraud_weeks import split_rows, split_weeks

SHIPPED = Path(artifacts.__file__).parent / "pretrained" / "fraud-student"
TEST = ("2018-07-25", "2018-08-01", "2018-08-08", "2018-08-15")
VALIDATION = ("2018-06-20", "2018-06-27", "2018-07-04", "2018-07-11")
ORDER = tuple((protocol, first) for protocol in ("week", "past") for first in (*TEST, *VALIDATION))
RAW = FraudStudentConfig(
    features=len(CONTEXT), channels=FraudTraining(name="").student.channels, card_tokens=24, terminal_tokens=32,
    layers=3,
)  # fmt: skip
UNLABELLED = 300_000
LEAST_S = 25.0  # a student is not begun with less time than this


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A student beside the recipe's own: what differs. `fit` by protocol; where it has no entry it is not trained."""

    fit: dict[str, FitSettings]
    student: FraudStudentConfig | None = None
    shipped_start: bool = False
    unlabelled: bool = False


VARIANTS = {
    "student": Variant(
        fit={protocol: training_of(RunSpec(kind=ModelKind.FRAUD, recipe=f"fraud_{protocol}")).student_fit
             for protocol in ("week", "past")}
    ),
    "student_tuned": Variant(
        fit={
            "week": FitSettings(epochs=3, batch=256, rate=3e-4, decay=0.05, seconds=30),
            "past": FitSettings(epochs=4, batch=2_048, rate=6e-4, decay=0.05, seconds=45),
        },
        shipped_start=True,
    ),
    "student_unlabelled": Variant(
        fit={"week": FitSettings(epochs=6, batch=1_024, rate=2e-3, decay=0.05, seconds=60)}, unlabelled=True
    ),
    "student_raw": Variant(
        fit={
            "week": FitSettings(epochs=12, batch=512, rate=2e-3, decay=0.05, seconds=50),
            "past": FitSettings(epochs=12, batch=2_048, rate=3e-3, decay=0.05, seconds=100),
        },
        student=RAW,
    ),
    "student_raw_unlabelled": Variant(
        fit={"week": FitSettings(epochs=6, batch=1_024, rate=2e-3, decay=0.05, seconds=70)},
        student=RAW,
        unlabelled=True,
    ),
}  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """`train` ends with 0 when every cell ran to its end; `evaluate` passes its options on."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["evaluate"]:
        from tests.bench import fraud_weeks_evaluate

        return fraud_weeks_evaluate.main(words[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["train"])
    parser.add_argument("--transactions", type=Path, required=True, help="the Handbook's raw parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="about 2 GB for the replayed inputs, best in memory")
    parser.add_argument("--seconds", type=float, default=400.0, help="wall clock, replay included")
    parser.add_argument("--procs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocols", default="week,past")
    parser.add_argument("--folds", default=",".join((*TEST, *VALIDATION)), help="first days")
    parser.add_argument("--systems", default=",".join(VARIANTS), help="students")
    parser.add_argument("--rows", type=int, default=0, help="genuine rows to learn from; 0 for the recipe's")
    parser.add_argument("--teacher", default="lightgbm+transformer", help="lightgbm where there is no GPU")
    parser.add_argument("--patience", type=float, default=1.0, help="times the seconds that a fit may take at most")
    parser.add_argument("--quick", action="store_true", help="400 cards, one fold, two epochs: does it run at all")
    return train(parser.parse_args(words))


def train(options: argparse.Namespace) -> int:
    """Replay, then one process a cell, at most `procs` at a time; none begun in the last LEAST_S seconds.

    Returns 1 where one is missing.
    """
    deadline = time.time() + options.seconds
    (options.out / "scores").mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    table = _table(options)
    if not (options.work / "first.txt").exists():
        _say(f"{len(table)} transactions; replay begins")
        _replay(table, options.work)
    _say(f"replayed, {deadline - time.time():.0f} s left")
    missed = False
    context = multiprocessing.get_context("spawn")
    folds = TEST[:1] if options.quick else options.folds.split(",")
    waiting = [cell for cell in ORDER if cell[0] in options.protocols.split(",") and cell[1] in folds]
    running: list = []
    while waiting or running:
        for process in [process for process in running if not process.is_alive()]:
            running.remove(process)
            if process.exitcode:
                _say(f"{process.name} failed with {process.exitcode}")
                missed = True
        if waiting and time.time() > deadline - LEAST_S:
            _say(f"out of time, never begun: {waiting}")
            waiting, missed = [], True
        while waiting and len(running) < options.procs:
            cell = waiting.pop(0)
            process = context.Process(target=_cell, args=(cell, options, deadline), name=" ".join(cell), daemon=True)
            process.start()
            running.append(process)
        if time.time() > deadline:
            for process in running:
                process.terminate()
            _say(f"out of time, ended in the middle: {', '.join(process.name for process in running)}")
            missed = True
            break
        time.sleep(0.2)
    done = len((options.out / "cells.jsonl").read_text().splitlines()) if (options.out / "cells.jsonl").exists() else 0
    _say(f"{done} systems scored, {deadline - time.time():.0f} s left")
    return int(missed)


@dataclass(kw_only=True, slots=True)
class Cell:
    """One protocol and fold: what learns, what is tested, and where the answers go."""

    protocol: str
    first: str
    table: Table
    test: np.ndarray
    probe: Samples
    training: FraudTraining
    rows: Rows
    out: Path
    deadline: float
    log: EventLog
    seed: int

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def write(self, system: str, logits: np.ndarray, *, probability: np.ndarray, began: float) -> None:
        """One system's ranks and metrics."""
        _, rank = np.unique(logits, return_inverse=True)
        np.savez(self.out / "scores" / f"{self.protocol}-{self.first}-{system}.npz", score=rank.astype(np.uint16))
        fraud, p = self.probe.fraud.astype(float), np.clip(probability.astype(float), 1e-7, 1 - 1e-7)
        line = {
            "protocol": self.protocol,
            "first_day": self.first,
            "system": system,
            **protocol_scores(self.table, self.test, logits),
            "brier": float(np.mean((p - fraud) ** 2)),
            "log_loss": float(-np.mean(fraud * np.log(p) + (1 - fraud) * np.log1p(-p))),
            "seconds": round(time.time() - began, 1),
            "n": len(fraud),
            "frauds": int(fraud.sum()),
            "train": len(self.rows.train),
        }
        with (self.out / "cells.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        _say(
            f"{self.protocol} {self.first} {system}: AP {line['ap']:.4f}, {line['seconds']} s, {self.left():.0f} s left"
        )


def _cell(which: tuple[str, str], options: argparse.Namespace, deadline: float) -> None:
    """The whole of one cell, in a process of its own."""
    protocol, first = which
    torch.set_num_threads(1)
    table = _table(options)
    training = _training(protocol, first, options)
    split = split_weeks(table, training, seed=options.seed)
    _, test = fold(table, first_day=date.fromisoformat(first))
    samples, begin = _replayed(options.work)
    rows = split_rows(samples, split, digest="", first=begin)
    with EventLog(options.work / f"{protocol}-{first}") as log:
        cell = Cell(
            protocol=protocol, first=first, table=table, test=test, probe=samples.take(test - begin),
            training=training, rows=rows, out=options.out, deadline=deadline, log=log, seed=options.seed,
        )  # fmt: skip
        data = Batch.of(rows.train, device=device_of(training))
        teachers = _teachers(cell, data)
        for name, variant in VARIANTS.items():
            if protocol in variant.fit and name in options.systems.split(",") and cell.left() > LEAST_S:
                _student(cell, name, variant, data=data, teachers=teachers, options=options)


def _teachers(cell: Cell, data: Batch) -> Teachers:
    began, training = time.time(), cell.training
    teachers = fit_teachers(training, replace(cell.rows, unlabelled=None), data, log=cell.log, seed=cell.seed)
    trees = tree_outputs(teachers.booster, cell.probe.features, threads=training.trees.threads).logits
    if teachers.transformer is None:
        cell.write("trees", trees, probability=_sigmoid(trees), began=began)
        return teachers
    deep = predict(teachers.transformer, Batch.of(cell.probe, device=device_of(training))).numpy()
    for system, logits in (("trees", trees), ("transformer", deep), ("teacher", 0.5 * (trees + deep))):
        cell.write(system, logits, probability=_sigmoid(logits), began=began)
    return teachers


def _student(
    cell: Cell, name: str, variant: Variant, *, data: Batch, teachers: Teachers, options: argparse.Namespace
) -> None:
    """Distil, calibrate, quantize and score one student."""
    began, fit = time.time(), variant.fit[cell.protocol]
    seconds = min(fit.seconds * options.patience, cell.left() - LEAST_S + 5.0)
    fit = replace(fit, seconds=seconds, epochs=2 if options.quick else fit.epochs)
    training = replace(cell.training, student_fit=fit, student=variant.student or cell.training.student)
    device = device_of(training)
    if variant.unlabelled:
        taught, teachers = with_unlabelled(training, cell.rows, teachers)
        data = Batch.of(taught, device=device)
    start = _shipped() if variant.shipped_start else None
    student = fit_student(training, data, teachers, log=cell.log, seed=cell.seed, start=start)
    calibrate(student, Batch.of(cell.rows.guard, device=device))
    probe = Batch.of(cell.probe, device=device)
    logits = predict(student, probe)
    if name == "student":
        probability = torch.sigmoid(student.cpu().calibrated(logits)).numpy()
        cell.write("student_float", logits.numpy(), probability=probability, began=began)
    model = quantize(
        student, cell.rows.train, limit=training.quantize_rows, log=cell.log, seed=cell.seed, device=device
    )
    logits = predict(model, Batch.of(cell.probe, device=torch.device("cpu")))
    cell.write(name, logits.numpy(), probability=torch.sigmoid(model.calibrated(logits)).numpy(), began=began)


def _training(protocol: str, first: str, options: argparse.Namespace) -> FraudTraining:
    params: dict[str, int | float | str] = {"first_day": first, "teacher": options.teacher}
    if options.rows:
        params["rows"] = options.rows
    if any(VARIANTS[name].unlabelled and protocol in VARIANTS[name].fit for name in options.systems.split(",")):
        params["unlabelled"] = UNLABELLED
    training = training_of(RunSpec(kind=ModelKind.FRAUD, recipe=f"fraud_{protocol}", params=params))
    deep = training.transformer_fit
    training = replace(
        training,
        trees=replace(training.trees, threads=1),
        transformer_fit=replace(deep, seconds=deep.seconds * options.patience),
    )
    if not options.quick:
        return training
    return replace(
        training,
        trees=replace(training.trees, trees=20),
        transformer_fit=replace(training.transformer_fit, epochs=1),
        quantize_rows=1_000,
        unlabelled_rows=5_000,
        table_rows=5_000,
    )


def _shipped() -> dict[str, Tensor]:
    return float_state(artifacts.load_tensors(SHIPPED))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits.astype(float)))


def _table(options: argparse.Namespace) -> Table:
    table = read_table(options.transactions)
    if not options.quick:
        return table
    few = table.card < 400
    return Table(**{name: getattr(table, name)[few] for name in Table.__slots__})


def _replay(table: Table, work: Path) -> None:
    """Replayed inputs of all rows after the warm-up as arrays on disk, and the first one's row number."""
    keep = table.day >= table.day[0] + FraudTraining(name="").warm_days
    samples = table_samples(table, keep=keep, weight=np.ones(len(table), np.float32))
    for each in fields(samples):
        np.save(work / f"{each.name}.npy", getattr(samples, each.name))
    (work / "first.txt").write_text(str(int(np.flatnonzero(keep)[0])))


def _replayed(work: Path) -> tuple[Samples, int]:
    names = [each.name for each in fields(Samples)]
    samples = Samples(**{name: np.load(work / f"{name}.npy", mmap_mode="r") for name in names})
    return samples, int((work / "first.txt").read_text())


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
