"""A chain of teachers: CNN → a large report model → students, all on the same batches; and what is kept of it."""

import copy
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_core.contracts import RunSpec
from ml_core.data.chest import film_prepare, folder_read
from ml_core.data.dicom import image_read
from ml_core.data.report_tokens import ReportTokenizer
from ml_core.distill.dfad import DFADConfig
from ml_core.errors import RunError
from ml_core.models.cnn_teacher import CnnTeacher
from ml_core.models.report_rules import Rules
from ml_core.models.report_student import ReportStudent, ReportStudentConfig
from ml_core.serving.report import ReportDrafter
from ml_core.train.report_artifact import checkpoint_write, films_digest, student_write
from ml_core.train.report_choose import rules_choose
from ml_core.train.report_fit import Pupil, students_fit
from ml_core.train.report_gather import Films, ReportParams, input_path
from ml_core.train.report_loop import FitOptions
from ml_core.train.report_scores import drafts_write, scores_predict, simulated_pictures
from ml_core.train.report_stages import auc_figures, cnn_fit, reporter, student_start
from ml_core.train.report_teachers import CnnLessons, DrafterLessons

if TYPE_CHECKING:
    from ml_core.events import EventLog

_CNN, _LARGE = 0.09, 0.38  # shares of the time left that the CNN gets, then the large teacher
_ALIGNMENT = DFADConfig(alpha=0.4)
_HEAD = 64  # width of a head
_PUPILS = ("chain", "cnn", "plain")  # from the large side, from the CNN, from the labels alone


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What came of it: every model by its name, and the decision rules of those that write."""

    cnn: CnnTeacher
    large: ReportStudent
    mean: DrafterLessons  # the large model with the CNN's say
    students: dict[str, ReportStudent]
    rules: dict[str, dict[str, Any]]
    chosen: str


class Pictures:
    """Films that nothing is learnt from or chosen by: real ones of the input `val`, and those of report-quality."""

    def __init__(self, spec: RunSpec, folder: Path, params: ReportParams) -> None:
        self.sets = {"simulated": simulated_pictures(count=params.scored, processes=params.processes or _cores())}
        if "val" in spec.inputs:
            root = input_path(spec, folder, "val")
            films = folder_read(root / "labels.csv", images=root / "images")
            self.sets["val"] = {film.image: film.path.read_bytes() for film in films}

    def prepared(self, name: str, *, size: int) -> NDArray[np.uint8]:
        """All pictures of a set as the models get them (n size size)."""
        films = [film_prepare(image_read(body), size=size) for body in self.sets[name].values()]
        return np.stack([np.round(film * 255).astype(np.uint8) for film in films])


def chain_fit(
    spec: RunSpec,
    params: ReportParams,
    films: Films,
    config: ReportStudentConfig,
    *,
    stem: dict[str, Tensor],
    log: "EventLog",
    ends: float = 0.0,
    start: ReportStudent | None = None,
) -> Chain:
    """Fit the CNN, the large model from it, and the students `params.pupils`: from random weights, or from `start`.

    The students' large teacher is the large model, or its mean with the CNN, whichever has the better mean ROC-AUC on
    the films held out and on simulated ones not learnt from; the best student by the same figure is chosen. `ends`: the
    monotonic time by which all fits must be through (0: no limit). Raises RunError for a pupil that does not exist.
    """
    if not params.pupils or (unknown := set(params.pupils.split(",")) - set(_PUPILS)):
        raise RunError(f"pupils: some of {', '.join(_PUPILS)} are wanted, not {params.pupils!r}; unknown: {unknown}")

    def left(share: float) -> float:
        return max(1.0, (ends - time.monotonic()) * share) if ends else 0.0

    def check(name: str, model: nn.Module, step: int) -> None:
        log.eval(f"held_out/{name}/step{step}", metrics=auc_figures(model, films, device=params.device))

    log.stage("teacher", index=2, of=6)
    cnn = cnn_fit(films, params, seed=spec.seed, stem=stem, log=log, seconds=left(_CNN))
    log.stage("large teacher", index=3, of=6)
    options = FitOptions(
        steps=params.large_steps, batch=params.large_batch, rate=params.large_rate, device=params.device,
        seed=spec.seed + 2, seconds=left(_LARGE),
    )  # fmt: skip
    large = student_start(large_config(config, params), stem=stem, log=log)
    pupil = Pupil(name="large", model=large, teacher=CnnLessons(cnn), config=_ALIGNMENT)
    (large,) = students_fit([pupil], films.train, options, reporter(log, options), check=check)
    sides = {"large": DrafterLessons(large), "mean": DrafterLessons(large, cnn=cnn)}
    side = _best(sides, films, params, log=log)
    log.stage("students", index=4, of=6)
    teachers = dict(zip(_PUPILS, (sides[side], CnnLessons(cnn), None), strict=True))
    first = start or student_start(config, stem=stem, log=log)
    pupils = [
        Pupil(name=name, model=copy.deepcopy(first), teacher=teachers[name], config=_ALIGNMENT)
        for name in params.pupils.split(",")
    ]
    options = replace(
        options, steps=params.student_steps, batch=params.batch, rate=params.rate, seed=spec.seed + 1, seconds=left(1.0)
    )
    fitted = students_fit(pupils, films.train, options, reporter(log, options), check=check)
    students = {pupil.name: model for pupil, model in zip(pupils, fitted, strict=True)}
    writers = {"large": large, **students}
    return Chain(
        cnn=cnn,
        large=large,
        mean=sides["mean"],
        students=students,
        rules={name: rules_choose(model, films, device=params.device) for name, model in writers.items()},
        chosen=_best(students, films, params, log=log),
    )


def _best(models: Mapping[str, nn.Module], films: Films, params: ReportParams, *, log: "EventLog") -> str:
    merits = {}
    for name, model in models.items():
        figures = auc_figures(model, films, device=params.device)
        log.eval(f"held_out/{name}", metrics=figures)
        merits[name] = sum(figures.values()) / len(figures)
    best = max(merits, key=lambda name: merits[name])
    log.log(f"{best} is the best of {', '.join(merits)}")
    return best


def large_config(config: ReportStudentConfig, params: ReportParams) -> ReportStudentConfig:
    """The student's geometry made large."""
    width = params.large_decoder_width
    return replace(
        config,
        encoder=params.large_encoder,
        encoder_depth=params.large_depth,
        decoder_layers=params.large_decoder_layers,
        decoder_width=width,
        decoder_heads=width // _HEAD,
        decoder_ffn=4 * width,
    )


def chain_write(
    folder: Path, chain: Chain, films: Films, pictures: Pictures, *, tokenizer: ReportTokenizer, device: str,
    log: "EventLog",
) -> None:  # fmt: skip
    """Keep of a chain: students (INT8 in students/NAME, halves in checkpoints/NAME), rules, scores.npz, drafts.jsonl.

    scores.npz holds SET/MODEL/LOGITS for the films held out, the simulated ones that rules were checked on, and both
    sets of `pictures`. The large model is not kept: its scores and its drafts are.
    """
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "rules.json").write_text(json.dumps(chain.rules | {"chosen": chain.chosen}, indent=1))
    (checkpoints / "tokenizer.json").write_text(tokenizer.json)
    for name, student in chain.students.items():
        checkpoint_write(checkpoints / name, {key: _halved(value) for key, value in student.state_dict().items()})
        rules, basis = rules_split(chain.rules[name])
        student_write(
            folder / "students" / name,
            student=copy.deepcopy(student).cpu(),
            tokenizer=tokenizer,
            rules=rules,
            recipe=f"report_chain_int8/{name}",
            metrics={},
            card=f"# report-student, {name}\n\nOne of the students of a chain, not measured yet.\n",
            basis=basis,
            data_digest=films_digest(films.train),
        )
    log.log("students written")
    np.savez(folder / "scores.npz", **_scores(chain, films, pictures, device=device))
    log.log("scores written")
    rules, _ = rules_split(chain.rules["large"])
    for kind, bodies in pictures.sets.items():
        own = rules.for_films(simulated=kind == "simulated")
        drafter = ReportDrafter.of(chain.large, tokenizer=tokenizer, rules=own, device=device)
        drafts_write(folder / "drafts.jsonl", drafter, bodies, model="large", films=kind)
    log.log("drafts of the large model written")


def rules_split(chosen: Mapping[str, Any]) -> tuple[Rules, dict[str, Any]]:
    """The rules of `rules_choose`, and what says how they were chosen."""
    rules = {field.name: chosen[field.name] for field in fields(Rules) if field.name in chosen}
    return Rules(**rules), {name: value for name, value in chosen.items() if name not in rules}


def _scores(chain: Chain, films: Films, pictures: Pictures, *, device: str) -> dict[str, NDArray[np.float32]]:
    size = chain.large.config.image_size
    sets = {name: pictures.prepared(name, size=size) for name in pictures.sets}
    sets["simulated_check"] = films.simulated_check.images
    if films.held_out_films is not None:
        sets["held_out"] = films.held_out_films.images
    models = {"cnn": chain.cnn, "large": chain.large, "mean": chain.mean}
    models |= {f"student-{name}": student for name, student in chain.students.items()}
    return {
        f"{kind}/{name}/{logits}": values
        for kind, images in sets.items()
        for name, model in models.items()
        for logits, values in scores_predict(model, images, device=device).items()
    }


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor


def _cores() -> int:
    return os.cpu_count() or 1
