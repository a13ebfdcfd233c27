"""Training runs of the radiology student: films, CNN teacher, student by DFAD, thresholds, INT8, artifact."""

import copy
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ml_core.config import from_mapping
from ml_core.contracts import RunSpec
from ml_core.data.chest import SUFFIXES, LabelledFilm, folder_read
from ml_core.data.findings import FINDINGS, INDEX, NO_FINDING
from ml_core.data.phantom_disease import disease_sample
from ml_core.data.phantom_report import report_write
from ml_core.data.report_tokens import ReportTokenizer
from ml_core.errors import RunError
from ml_core.models.cnn_teacher import CnnTeacher, stem_weights_load
from ml_core.models.report_rules import Rules
from ml_core.models.report_student import ReportStudent, ReportStudentConfig
from ml_core.quant import Quantizer
from ml_core.seed import seed_all
from ml_core.train.outcome import RunOutcome
from ml_core.train.report_artifact import figures, films_digest, student_read, student_write
from ml_core.train.report_films import (
    OTHER,
    UNLABELLED,
    FilmSet,
    files_prepare,
    films_join,
    films_labelled,
    films_plain,
    films_simulate,
    labels_matrix,
    others_simulate,
    presence,
)
from ml_core.train.report_fit import FitOptions, auc_mean, presence_predict, student_fit, teacher_fit

if TYPE_CHECKING:
    from ml_core.events import EventLog

_LEAST_POSITIVES = 10  # a finding with no more real training examples is never asserted
_LEAST_HELD_OUT = 5
_LEAST_AUC = 0.65  # on the films held out; below, a finding is noise


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportParams:
    """What a run may be told. `phantoms` films are simulated; `held_out` of the labelled patients choose thresholds."""

    phantoms: int = 600
    others: int = 200
    teacher_steps: int = 60
    student_steps: int = 120
    batch: int = 16
    rate: float = 1e-3
    teacher_rate: float = 5e-4
    held_out: float = 0.2
    image_size: int = 256
    encoder_depth: int = 8
    wordings: int = 2
    processes: int = 0  # 0: all cores
    device: str = "cpu"
    epochs: int = 0  # where given, the student goes through its films so often instead of `student_steps`
    teacher: str = "cnn"  # cnn, or self: the champion as it is
    student: str = "small"


@dataclass(frozen=True, kw_only=True)
class Films:
    """What one run learns from and what it is tuned on."""

    train: FilmSet
    held_out: list[LabelledFilm]
    held_out_films: FilmSet | None
    simulated_check: FilmSet
    positives: dict[str, int]


def run(spec: RunSpec, folder: Path, log: "EventLog") -> RunOutcome:
    """Train, quantize and write FOLDER/artifact; the champion, where there is one, is measured on the same films.

    With a champion as parent and `teacher` self (the small recipe) the student starts from the champion and is
    distilled from it; else everything starts anew from a CNN teacher.
    """
    params = from_mapping(ReportParams, spec.params, where="params")
    if params.student != "small" or params.teacher not in ("cnn", "self"):
        raise RunError(f"params: there is no student {params.student!r} with teacher {params.teacher!r}")
    champion = student_read(Path(spec.parent)) if spec.parent else None
    if champion is not None and params.teacher == "self":
        student, tokenizer, chosen, films = _continue(spec, folder, params, champion, log)
    else:
        student, tokenizer, chosen, films = fit(spec, folder, log)
    log.stage("int8", index=5, of=5)
    rules = Rules(thresholds=chosen["thresholds"], hedges=chosen["hedges"], gate=chosen["gate"])
    check = films.held_out_films or films.simulated_check
    candidate = figures(Quantizer(student).convert()[0], rules, check)
    beaten = figures(champion[0], champion[2], check) if champion else None
    basis = {name: value for name, value in chosen.items() if name not in ("thresholds", "hedges", "gate")}
    description = student_write(
        folder / "artifact",
        student=student,
        tokenizer=tokenizer,
        rules=rules,
        recipe=spec.recipe,
        metrics=candidate,
        card=_card(spec, films, candidate),
        basis=basis,
        data_digest=films_digest(films.train),
        teacher_digest=champion[3] if champion else "",
    )
    return RunOutcome(digest=description.digest, artifact=folder / "artifact", candidate=candidate, champion=beaten)


def _continue(
    spec: RunSpec,
    folder: Path,
    params: ReportParams,
    champion: tuple[ReportStudent, ReportTokenizer, Rules, str],
    log: "EventLog",
) -> tuple[ReportStudent, ReportTokenizer, dict[str, Any], Films]:
    """Go on from the champion, distilled from itself; its rules stay unless there are labelled films to choose by."""
    teacher, tokenizer, rules, _ = champion
    log.stage("films", index=1, of=5)
    films = films_gather(spec, folder, replace(params, image_size=teacher.config.image_size), tokenizer, teacher.config)
    log.log(f"{len(films.train)} films to learn from")
    log.stage("student", index=3, of=5)
    steps = params.epochs * max(1, len(films.train) // params.batch) if params.epochs else params.student_steps
    options = FitOptions(
        steps=steps, batch=params.batch, rate=params.rate / 20, device=params.device, seed=spec.seed + 1, every=1
    )
    student = student_fit(
        copy.deepcopy(teacher), teacher, films.train, options, _reporter(log, options, params.epochs or 1)
    )
    log.stage("thresholds", index=4, of=5)
    kept = {"thresholds": rules.thresholds, "hedges": rules.hedges, "gate": rules.gate, "basis": "the champion's"}
    chosen = rules_choose(student, films, device=params.device) if films.held_out_films is not None else kept
    return student, tokenizer, chosen, films


def _card(spec: RunSpec, films: Films, candidate: dict[str, float]) -> str:
    source = "labelled films held out by patient" if films.held_out_films is not None else "simulated films"
    return (
        f"# report-student, recipe {spec.recipe}\n\n"
        f"Made by a training run, seed {spec.seed}, from {len(films.train)} films.\n"
        f"Micro F1 of asserted findings on {int(candidate['films'])} {source}: {candidate['f1_micro']:.3f}.\n"
        "Drafts are suggestions for a radiologist and never a diagnosis.\n"
    )


def fit(spec: RunSpec, folder: Path, log: "EventLog") -> tuple[ReportStudent, ReportTokenizer, dict[str, Any], Films]:
    """Everything up to the float student: returns it with its tokenizer and its decision rules."""
    params = from_mapping(ReportParams, spec.params, where="params")
    seed_all(spec.seed)
    log.stage("films", index=1, of=5)
    tokenizer = tokenizer_train(spec.seed)
    config = ReportStudentConfig(
        vocabulary=tokenizer.size, image_size=params.image_size, encoder_depth=params.encoder_depth
    )
    films = films_gather(spec, folder, params, tokenizer, config)
    log.log(f"{len(films.train)} films to learn from, {len(films.held_out)} labelled ones held out")
    log.stage("teacher", index=2, of=5)
    stem = load_file(_input(spec, folder, "stem")) if "stem" in spec.inputs else {}
    teacher = _teacher(films, params, spec.seed, stem, log)
    log.stage("student", index=3, of=5)
    student = _student(films, config, params, spec.seed, teacher, stem, log)
    log.stage("thresholds", index=4, of=5)
    rules = rules_choose(student, films, device=params.device)
    for name, model in (("teacher", teacher), ("student", student)):
        log.eval(f"held_out/{name}", metrics=_figures(model, films, params.device))
    checkpoint_write(folder / "checkpoints" / "student", student.state_dict())
    checkpoint_write(folder / "checkpoints" / "teacher", {k: v.half() for k, v in teacher.state_dict().items()})
    (folder / "checkpoints" / "rules.json").write_text(json.dumps(rules, indent=1))
    (folder / "checkpoints" / "tokenizer.json").write_text(tokenizer.json)
    return student, tokenizer, rules, films


def tokenizer_train(seed: int, *, reports: int = 4000) -> ReportTokenizer:
    """Learn the tokens on simulated reports."""
    rng = np.random.default_rng([seed, 31])
    texts = []
    for index in range(reports):
        diseases = disease_sample(rng, view="AP" if index % 2 else "PA")
        texts += [sentence.text for sentence in report_write(diseases, rng).sentences]
    return ReportTokenizer.train(texts)


def films_gather(
    spec: RunSpec, folder: Path, params: ReportParams, tokenizer: ReportTokenizer, config: ReportStudentConfig
) -> Films:
    """Simulate, read and split by patient."""
    processes = params.processes or os.cpu_count() or 1
    size, tokens, wordings = params.image_size, config.max_tokens, params.wordings
    start = 10_000_000 * (spec.seed + 1)

    def simulate(first: int, count: int) -> FilmSet:
        seeds = range(start + first, start + first + count)
        return films_simulate(
            seeds, size=size, tokenizer=tokenizer, tokens=tokens, wordings=wordings, processes=processes
        )

    parts = [simulate(0, params.phantoms)]
    check = simulate(params.phantoms, max(64, params.phantoms // 40))
    others = others_simulate(range(start, start + params.others), size=size)
    kept, held = _labelled(spec, folder, params)
    make = {"size": size, "tokenizer": tokenizer, "tokens": tokens, "wordings": wordings}
    if kept:
        parts.append(films_labelled(kept, seed=spec.seed, **make))
    if "unlabelled" in spec.inputs:
        plain = files_prepare(_pictures(_input(spec, folder, "unlabelled")), size=size)
        parts.append(films_plain(plain, kind=UNLABELLED, tokens=tokens, wordings=wordings))
    if "others" in spec.inputs:
        others += files_prepare(_pictures(_input(spec, folder, "others")), size=size) * 3
    parts.append(films_plain(others, kind=OTHER, tokens=tokens, wordings=wordings))
    everything = [*kept, *held]
    return Films(
        train=films_join(parts),
        held_out=held,
        held_out_films=films_labelled(held, **make) if held else None,
        simulated_check=check,
        positives={name: sum(name in film.names for film in everything) for name in FINDINGS},
    )


def rules_choose(student: ReportStudent, films: Films, *, device: str) -> dict[str, Any]:
    """Decision rules. `thresholds`: findings that may be asserted, from the labelled films held out, at the best F1.

    `hedges`: findings without enough real examples, which may only be raised as uncertain, at a level that at most 3 %
    of the held-out films pass. Without labelled films both are chosen on simulated ones, and `basis` says so.
    """
    real = films.held_out_films is not None
    basis = films.held_out_films if real else films.simulated_check
    truth = labels_matrix(films.held_out) if real else presence(basis)
    scores = presence_predict(student, basis.images, device=device)
    aucs = auc_mean(truth, scores)
    thresholds, hedges = {}, {}
    for index, name in enumerate(FINDINGS):
        enough = films.positives[name] > _LEAST_POSITIVES if real else True
        if enough and truth[:, index].sum() >= _LEAST_HELD_OUT and aucs.get(name, 0.0) >= _LEAST_AUC:
            thresholds[name] = best_threshold(truth[:, index], scores[:, index])
        elif name != NO_FINDING:
            hedges[name] = float(max(0.5, np.quantile(scores[:, index], 0.97)))
    return {
        "thresholds": thresholds,
        "hedges": hedges,
        "gate": 0.9 if real else 0.5,
        "basis": "real" if real else "simulated",
        "positives": films.positives,
        "auc": aucs,
    }


def best_threshold(truth: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the best F1, half-way between neighbouring scores; F1 is smoothed by two invented films."""
    order = np.argsort(-scores)
    hits = np.cumsum(truth[order])
    stated = np.arange(1, len(order) + 1)
    f1 = 2 * hits / (stated + truth.sum() + 2)
    best = int(np.argmax(f1))
    below = scores[order[best + 1]] if best + 1 < len(order) else 0.0
    return float((scores[order[best]] + below) / 2)


def checkpoint_write(folder: Path, tensors: dict[str, torch.Tensor], *, limit: int = 14_000_000) -> None:
    """Write tensors as numbered safetensors of at most about `limit` bytes each."""
    folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, torch.Tensor] = {}
    size = count = 0
    for name, tensor in tensors.items():
        amount = tensor.numel() * tensor.element_size()
        if shard and size + amount > limit:
            save_file(shard, folder / f"{count:02d}.safetensors")
            shard, size, count = {}, 0, count + 1
        shard[name] = tensor.detach().cpu().contiguous()
        size += amount
    save_file(shard, folder / f"{count:02d}.safetensors")


def checkpoint_read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def _labelled(spec: RunSpec, folder: Path, params: ReportParams) -> tuple[list[LabelledFilm], list[LabelledFilm]]:
    if "labelled" not in spec.inputs:
        return [], []
    root = _input(spec, folder, "labelled")
    images = root / "images" if (root / "images").is_dir() else root
    films = folder_read(root / "labels.csv", images=images)
    if not films:
        raise RunError(f"{root} holds no labelled film")
    held = [film for film in films if _share_of(film.patient) < params.held_out]
    return [film for film in films if _share_of(film.patient) >= params.held_out], held


def _share_of(patient: str) -> float:
    """A patient's place in [0, 1), the same in every run."""
    return int(hashlib.sha256(f"assay:{patient}".encode()).hexdigest()[:8], 16) / 2**32


def _input(spec: RunSpec, folder: Path, name: str) -> Path:
    path = Path(spec.inputs[name])
    return path if path.is_absolute() else folder / path


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _teacher(
    films: Films, params: ReportParams, seed: int, stem: dict[str, torch.Tensor], log: "EventLog"
) -> CnnTeacher:
    teacher = CnnTeacher()
    if stem:
        log.log(f"{stem_weights_load(teacher.net, stem)} tensors of the teacher start from ImageNet")
    options = FitOptions(
        steps=params.teacher_steps, batch=params.batch, rate=params.teacher_rate, device=params.device, seed=seed
    )
    return teacher_fit(teacher, films.train, options, _reporter(log, options, 1))


def _student(
    films: Films,
    config: ReportStudentConfig,
    params: ReportParams,
    seed: int,
    teacher: CnnTeacher,
    stem: dict[str, torch.Tensor],
    log: "EventLog",
) -> ReportStudent:
    student = ReportStudent(config)
    if stem:
        log.log(f"{stem_weights_load(student.encoder.patch_embed, stem)} tensors of the stem start from ImageNet")
    options = FitOptions(
        steps=params.student_steps,
        batch=params.batch,
        rate=params.rate,
        device=params.device,
        seed=seed + 1,
        every=max(1, params.student_steps // 40),
    )
    marks = {params.student_steps * share // 4 for share in (1, 2, 3, 4)}

    def check(model: ReportStudent, step: int) -> None:
        if any(step <= mark < step + options.every for mark in marks):
            log.eval(f"held_out/step{step}", metrics=_figures(model, films, params.device))

    return student_fit(student, teacher, films.train, options, _reporter(log, options, 1), check=check)


def _reporter(log: "EventLog", options: FitOptions, epochs: int):
    def report(step: int, loss: float, rate: float, alpha: float, align: dict[str, float]) -> None:
        log.step(step, steps=options.steps, epoch=1, epochs=epochs, loss=loss, alpha=alpha, lr=rate, align=align)

    return report


def _figures(model: torch.nn.Module, films: Films, device: str) -> dict[str, float]:
    """Mean ROC-AUC on the labelled films held out and on simulated films not learnt from."""
    check = films.simulated_check
    figures = {
        f"sim/{k}": v
        for k, v in auc_mean(presence(check), presence_predict(model, check.images, device=device)).items()
    }
    if films.held_out_films is not None:
        scores = presence_predict(model, films.held_out_films.images, device=device)
        truth = labels_matrix(films.held_out)
        figures |= {f"real/{name}": value for name, value in auc_mean(truth, scores).items()}
    return {name: value for name, value in figures.items() if INDEX.get(name) is None and np.isfinite(value)}
