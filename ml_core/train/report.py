"""Training runs of the radiology student: films, teachers, student by DFAD, thresholds, INT8, artifact."""

import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import Tensor

from ml_core.config import from_mapping, to_mapping
from ml_core.contracts import RunSpec
from ml_core.data.report_tokens import ReportTokenizer
from ml_core.errors import RunError
from ml_core.models.cnn_teacher import CnnTeacher
from ml_core.models.report_rules import Rules
from ml_core.models.report_student import ReportStudent, ReportStudentConfig
from ml_core.quant import Quantizer
from ml_core.seed import seed_all
from ml_core.train.outcome import RunOutcome
from ml_core.train.report_artifact import checkpoint_write, figures, films_digest, student_read, student_write
from ml_core.train.report_chain import Pictures, chain_fit, chain_write, rules_split
from ml_core.train.report_choose import rules_choose
from ml_core.train.report_fit import Pupil, students_fit
from ml_core.train.report_gather import Films, ReportParams, films_gather, input_path, tokenizer_train
from ml_core.train.report_loop import FitOptions
from ml_core.train.report_stages import auc_figures, cnn_fit, reporter, student_start
from ml_core.train.report_teachers import CnnLessons, DrafterLessons

if TYPE_CHECKING:
    from ml_core.events import EventLog


def run(spec: RunSpec, folder: Path, log: "EventLog") -> RunOutcome:
    """Train, quantize and write FOLDER/artifact; the champion, where there is one, is measured on the same films.

    With a champion as parent and `teacher` self (the small recipe) the student starts from the champion and is
    distilled from it; else everything starts anew from a CNN teacher, with `teacher` chain through a large one, whose
    scores and drafts are kept beside the artifact (see report_chain.chain_write).
    """
    params = from_mapping(ReportParams, spec.params, where="params")
    if params.student != "small" or params.teacher not in ("cnn", "chain", "self"):
        raise RunError(f"params: there is no student {params.student!r} with teacher {params.teacher!r}")
    champion = student_read(Path(spec.parent)) if spec.parent else None
    stages = 6 if params.teacher == "chain" else 5
    if champion is not None and params.teacher == "self":
        student, tokenizer, chosen, films = _continue(spec, folder, params, champion, log)
    else:
        student, tokenizer, chosen, films = _fit(spec, folder, params, log, stages=stages)
    log.stage("int8", index=stages, of=stages)
    rules, basis = rules_split(chosen)
    check = films.held_out_films or films.simulated_check
    candidate = figures(Quantizer(student).convert()[0], rules, check)
    beaten = figures(champion[0], champion[2], check) if champion else None
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
    pupil = Pupil(name="student", model=copy.deepcopy(teacher), teacher=DrafterLessons(teacher))
    (student,) = students_fit([pupil], films.train, options, reporter(log, options, epochs=params.epochs or 1))
    log.stage("thresholds", index=4, of=5)
    kept = to_mapping(rules) | {"basis": "the champion's"}
    chosen = rules_choose(student, films, device=params.device) if films.held_out_films is not None else kept
    return student, tokenizer, chosen, films


def _fit(
    spec: RunSpec, folder: Path, params: ReportParams, log: "EventLog", *, stages: int
) -> tuple[ReportStudent, ReportTokenizer, dict[str, Any], Films]:
    """Everything anew up to the float student: returns it with its tokenizer and its decision rules."""
    started = time.monotonic()
    seed_all(spec.seed)
    log.stage("films", index=1, of=stages)
    tokenizer = tokenizer_train(spec.seed)
    config = ReportStudentConfig(
        vocabulary=tokenizer.size, image_size=params.image_size, encoder_depth=params.encoder_depth
    )
    films = films_gather(spec, folder, params, tokenizer, config)
    log.log(f"{len(films.train)} films to learn from, {len(films.held_out)} labelled ones held out")
    stem = load_file(input_path(spec, folder, "stem")) if "stem" in spec.inputs else {}
    if params.teacher == "chain":
        pictures = Pictures(spec, folder, params)
        ends = started + params.seconds - params.reserve if params.seconds else 0.0
        start = _start(spec, folder, config, tokenizer) if "start" in spec.inputs else None
        chain = chain_fit(spec, params, films, config, stem=stem, log=log, ends=ends, start=start)
        chain_write(folder, chain, films, pictures, tokenizer=tokenizer, device=params.device, log=log)
        return chain.students[chain.chosen].cpu(), tokenizer, chain.rules[chain.chosen], films
    log.stage("teacher", index=2, of=stages)
    teacher = cnn_fit(films, params, seed=spec.seed, stem=stem, log=log)
    log.stage("student", index=3, of=stages)
    student = _student(films, config, params, spec.seed, teacher, stem, log)
    log.stage("thresholds", index=4, of=stages)
    rules = rules_choose(student, films, device=params.device)
    for name, model in (("teacher", teacher), ("student", student)):
        log.eval(f"held_out/{name}", metrics=auc_figures(model, films, device=params.device))
    checkpoint_write(folder / "checkpoints" / "student", student.state_dict())
    checkpoint_write(folder / "checkpoints" / "teacher", {k: v.half() for k, v in teacher.state_dict().items()})
    (folder / "checkpoints" / "rules.json").write_text(json.dumps(rules, indent=1))
    (folder / "checkpoints" / "tokenizer.json").write_text(tokenizer.json)
    return student.cpu(), tokenizer, rules, films


def _start(spec: RunSpec, folder: Path, config: ReportStudentConfig, tokenizer: ReportTokenizer) -> ReportStudent:
    """The artifact of the input `start` as the students' first weights; it must have their shape and their tokens."""
    path = input_path(spec, folder, "start")
    student, tokens, _, _ = student_read(path)
    if student.config != config or tokens.json != tokenizer.json:
        raise RunError(f"start: {path} has another shape or other tokens than the students of this run")
    return student


def _student(
    films: Films,
    config: ReportStudentConfig,
    params: ReportParams,
    seed: int,
    teacher: CnnTeacher,
    stem: dict[str, Tensor],
    log: "EventLog",
) -> ReportStudent:
    options = FitOptions(
        steps=params.student_steps,
        batch=params.batch,
        rate=params.rate,
        device=params.device,
        seed=seed + 1,
        every=max(1, params.student_steps // 40),
    )

    def check(name: str, model: ReportStudent, step: int) -> None:
        log.eval(f"held_out/step{step}", metrics=auc_figures(model, films, device=params.device))

    pupil = Pupil(name="student", model=student_start(config, stem=stem, log=log), teacher=CnnLessons(teacher))
    (student,) = students_fit([pupil], films.train, options, reporter(log, options), check=check)
    return student


def _card(spec: RunSpec, films: Films, candidate: dict[str, float]) -> str:
    source = "labelled films held out by patient" if films.held_out_films is not None else "simulated films"
    return (
        f"# report-student, recipe {spec.recipe}\n\n"
        f"Made by a training run, seed {spec.seed}, from {len(films.train)} films.\n"
        f"Micro F1 of asserted findings on {int(candidate['films'])} {source}: {candidate['f1_micro']:.3f}.\n"
        "Drafts are suggestions for a radiologist and never a diagnosis.\n"
    )
