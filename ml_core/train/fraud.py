"""A fraud run from data to artifact: teachers, DFAD student, INT8, comparison with the champion on the last week."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ml_core import artifacts
from ml_core.config import from_mapping, to_mapping
from ml_core.contracts import ModelDescription, ModelKind, RunSpec
from ml_core.data.extra_inputs import ExtraInputs, extras_of
from ml_core.data.fraud_features import CHANNELS, FEATURES
from ml_core.data.handbook import read_table
from ml_core.errors import RunError
from ml_core.events import EventLog
from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig
from ml_core.quant import Quantizer, load_quantized, quantized_state
from ml_core.seed import numpy_generator
from ml_core.train.fraud_card import model_card
from ml_core.train.fraud_data import Batch, Samples
from ml_core.train.fraud_fit import predict, task_loss
from ml_core.train.fraud_presets import training_of
from ml_core.train.fraud_schema import in_units, mapped_rows, with_extras
from ml_core.train.fraud_stages import (
    FraudTraining,
    Rows,
    Teachers,
    bank_rows,
    calibrate,
    device_of,
    fit_student,
    fit_teachers,
    save_checkpoint,
    table_rows,
    weighted_metrics,
    with_unlabelled,
)
from ml_core.train.fraud_teacher import tree_outputs
from ml_core.train.fraud_weeks import week_rows
from ml_core.train.outcome import RunOutcome

STAGES = 5


def run(spec: RunSpec, folder: Path | str, log: EventLog) -> RunOutcome:
    """Run a fraud recipe; leaves FOLDER/checkpoints and FOLDER/artifact."""
    root = Path(folder)
    training = training_of(spec)
    log.stage("Data", index=1, of=STAGES)
    champion = _champion(spec)
    rows = _rows(training, spec, root)
    training = in_units(with_extras(training, rows.extras), rows)
    frauds = int(rows.train.fraud.sum())
    log.log(f"{len(rows.train)} transactions to learn from, {frauds} of them fraud; {len(rows.guard)} held back")
    start = _start(champion, training.student) if training.from_champion else None
    if start is not None:
        log.log("the student starts from the champion's weights")
    teachers, student = distil(training, rows, root, log=log, seed=spec.seed, start=start)
    log.stage("Quantize", index=4, of=STAGES)
    quantized = quantize(
        student, rows.train, limit=training.quantize_rows, log=log, seed=spec.seed, device=device_of(training)
    )
    log.stage("Compare", index=5, of=STAGES)
    guard = Batch.of(rows.guard, device=torch.device("cpu"))
    metrics = weighted_metrics(predict(quantized, guard).numpy(), rows.guard)
    other = None if champion is None else weighted_metrics(predict(champion, guard).numpy(), rows.guard)
    log.eval("held back: candidate", metrics=metrics)
    if other is not None:
        log.eval("held back: champion", metrics=other)
    done = write_artifact(
        root / "artifact",
        training=training,
        model=quantized,
        metrics=metrics,
        data=rows.digest,
        teacher=teachers.digest,
        extras=rows.extras,
    )
    return RunOutcome(digest=done.digest, artifact=root / "artifact", candidate=metrics, champion=other)


def distil(
    training: FraudTraining,
    rows: Rows,
    folder: Path,
    *,
    log: EventLog,
    seed: int,
    start: dict[str, Tensor] | None = None,
) -> tuple[Teachers, FraudStudent]:
    """Teachers and the calibrated float student (on the CPU), with their metrics on the guard rows and a checkpoint."""
    data = Batch.of(rows.train, device=device_of(training))
    guard = Batch.of(rows.guard, device=device_of(training))
    log.stage("Teacher", index=2, of=STAGES)
    teachers = fit_teachers(training, rows, data, log=log, seed=seed)
    trees = tree_outputs(teachers.booster, rows.guard.features, threads=training.trees.threads).logits
    log.eval("held back: LightGBM", metrics=weighted_metrics(trees, rows.guard))
    if teachers.transformer is not None:
        deep = predict(teachers.transformer, guard).numpy()
        log.eval("held back: transformer", metrics=weighted_metrics(deep, rows.guard))
        log.eval("held back: teacher", metrics=weighted_metrics(0.5 * (trees + deep), rows.guard))
    log.stage("Distil", index=3, of=STAGES)
    taught, taught_by = with_unlabelled(training, rows, teachers)
    if rows.unlabelled is not None:
        data = Batch.of(taught, device=device_of(training))
    student = fit_student(training, data, taught_by, log=log, seed=seed, start=start)
    calibrate(student, guard)
    log.eval("held back: float student", metrics=weighted_metrics(predict(student, guard).numpy(), rows.guard))
    save_checkpoint(folder / "checkpoints", teachers, student)
    return teachers, student.cpu()


def quantize(
    student: FraudStudent,
    samples: Samples,
    *,
    limit: int,
    log: EventLog,
    seed: int,
    device: torch.device | None = None,
) -> nn.Module:
    """Two epochs of training under fake INT8 against the float student and the labels, then the integer model.

    At most `limit` samples are trained on, on `device` (the CPU unless given); the integer model lives on the CPU.
    """
    device = device or torch.device("cpu")
    rng = numpy_generator(seed, "quantize")
    if len(samples) > limit:
        samples = samples.take(np.sort(rng.choice(len(samples), limit, replace=False)))
    data = Batch.of(samples, device=device)

    def epoch(number: int) -> Iterator[Batch]:
        order = torch.from_numpy(numpy_generator(seed, "quantize", number).permutation(len(data)))
        for index in order.split(512):
            yield data.take(index.to(device))

    def told(step: int, steps: int, loss: float) -> None:
        if step % 50 == 0:
            log.log(f"INT8 training: step {step}, loss {loss:.5f}")

    quantizer = Quantizer(student.to(device), bits=8)
    quantizer.fit(
        epoch,
        epochs=2,
        loss=lambda model, batch: task_loss(model(*batch.inputs()), batch),
        outputs=lambda model, batch: model(*batch.inputs()),
        lr=1e-4,
        progress=told,
    )
    model, report = quantizer.convert()
    student.cpu()
    worst = min((line for line in report if not line.skipped), key=lambda line: line.sqnr_db)
    log.log(f"INT8: {sum(not line.skipped for line in report)} layers, worst {worst.name} at {worst.sqnr_db:.1f} dB")
    return model


def write_artifact(
    folder: Path,
    *,
    training: FraudTraining,
    model: nn.Module,
    metrics: Mapping[str, float],
    data: str,
    teacher: str,
    extras: ExtraInputs | None = None,
) -> ModelDescription:
    """The INT8 student as an artifact with its card; `extras` goes into its config where there are any."""
    tensors = quantized_state(model)
    parameters = sum(
        tensor.numel() for name, tensor in tensors.items() if not name.startswith(("reference_", "feature_"))
    )
    return artifacts.write(
        folder,
        kind=ModelKind.FRAUD,
        name=training.name,
        recipe=training.name,
        config={
            "student": to_mapping(training.student),
            "training": to_mapping(training),
            "feature_names": list(FEATURES),
            "channel_names": list(CHANNELS),
            "bits": 8,
            **({} if extras is None else {"extras": extras.to_config()}),
        },
        tensors=tensors,
        metrics=dict(metrics),
        data_digest=data,
        teacher_digest=teacher,
        parameters=parameters,
        licence="Apache-2.0",
        card=model_card(training, metrics=metrics, parameters=parameters, extras=extras),
    )


def float_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float weights that the int8 levels of an artifact stand for."""
    out = {}
    for name, tensor in tensors.items():
        if name.endswith("weight_scale"):
            continue
        scale = tensors.get(f"{name}_scale")
        out[name] = tensor if scale is None else tensor.float() * scale[:, None]
    return out


def _rows(training: FraudTraining, spec: RunSpec, root: Path) -> Rows:
    if training.banks:
        return bank_rows(training, seed=spec.seed)
    if "transactions" not in spec.inputs:
        raise RunError("inputs: a parquet named transactions is needed")
    path = root / spec.inputs["transactions"]
    if training.protocol != "table":
        return week_rows(training, read_table(path), seed=spec.seed)
    if "mapping" not in spec.inputs:
        if _champion_extras(spec) is not None:
            raise RunError("the champion was made for a mapping, so it cannot be compared with")
        return table_rows(read_table(path), limit=training.table_rows, seed=spec.seed)
    return mapped_rows(
        path,
        mapping=root / spec.inputs["mapping"],
        limit=training.table_rows,
        seed=spec.seed,
        known=_champion_extras(spec),
    )


def _champion(spec: RunSpec) -> nn.Module | None:
    if not spec.parent:
        return None
    manifest = artifacts.read(spec.parent)
    if manifest.config.get("feature_names") != list(FEATURES):
        raise RunError("the champion was made for another feature layout, so it cannot be compared with")
    model = FraudStudent(from_mapping(FraudStudentConfig, manifest.config["student"]))
    return load_quantized(model, artifacts.load_tensors(spec.parent))


def _champion_extras(spec: RunSpec) -> ExtraInputs | None:
    return extras_of(artifacts.read(spec.parent).config) if spec.parent else None


def _start(champion: nn.Module | None, config: FraudStudentConfig) -> dict[str, Tensor] | None:
    if champion is None or champion.config != config:
        return None
    return float_state(champion.state_dict())
