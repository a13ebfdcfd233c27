"""What a run of the radiology student learns from: its settings, the tokens, and films simulated, read and split."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml_core.contracts import RunSpec
from ml_core.data.chest import SUFFIXES, LabelledFilm, folder_read
from ml_core.data.findings import FINDINGS
from ml_core.data.phantom_disease import disease_sample
from ml_core.data.phantom_report import report_write
from ml_core.data.report_tokens import ReportTokenizer
from ml_core.errors import RunError
from ml_core.models.report_student import ReportStudentConfig
from ml_core.train.report_films import (
    OTHER,
    UNLABELLED,
    FilmSet,
    files_prepare,
    films_join,
    films_labelled,
    films_plain,
    films_simulate,
    others_simulate,
)


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
    teacher: str = "cnn"  # cnn; chain: a CNN, then a large transformer; self: the champion as it is
    student: str = "small"
    # a chain's large teacher is the student's architecture, larger
    large_encoder: str = "vit_base_patch16_224"
    large_depth: int = 12
    large_decoder_layers: int = 6
    large_decoder_width: int = 768
    large_steps: int = 900
    large_batch: int = 160
    large_rate: float = 3e-4
    pupils: str = "chain,cnn,plain"  # a chain's students: from the large side, from the CNN, from labels alone
    scored: int = 160  # films of report-quality that a chain's models are asked about
    seconds: float = 0.0  # a chain's wall clock from its start to its last file: fewer steps in time; 0: no limit
    reserve: float = 75.0  # of those, what is kept for figures, drafts and files


@dataclass(frozen=True, kw_only=True)
class Films:
    """What one run learns from and what it is tuned on."""

    train: FilmSet
    held_out: list[LabelledFilm]
    held_out_films: FilmSet | None
    simulated_check: FilmSet
    positives: dict[str, int]


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
    others = others_simulate(range(start, start + params.others), size=size, processes=processes)
    kept, held = _labelled(spec, folder, params)
    make = {"size": size, "tokenizer": tokenizer, "tokens": tokens, "wordings": wordings}
    if kept:
        parts.append(films_labelled(kept, seed=spec.seed, **make))
    if "unlabelled" in spec.inputs:
        plain = files_prepare(_pictures(input_path(spec, folder, "unlabelled")), size=size)
        parts.append(films_plain(plain, kind=UNLABELLED, tokens=tokens, wordings=wordings))
    if "others" in spec.inputs:
        others += files_prepare(_pictures(input_path(spec, folder, "others")), size=size) * 3
    parts.append(films_plain(others, kind=OTHER, tokens=tokens, wordings=wordings))
    everything = [*kept, *held]
    return Films(
        train=films_join(parts),
        held_out=held,
        held_out_films=films_labelled(held, **make) if held else None,
        simulated_check=check,
        positives={name: sum(name in film.names for film in everything) for name in FINDINGS},
    )


def _labelled(spec: RunSpec, folder: Path, params: ReportParams) -> tuple[list[LabelledFilm], list[LabelledFilm]]:
    if "labelled" not in spec.inputs:
        return [], []
    root = input_path(spec, folder, "labelled")
    images = root / "images" if (root / "images").is_dir() else root
    films = folder_read(root / "labels.csv", images=images)
    if not films:
        raise RunError(f"{root} holds no labelled film")
    held = [film for film in films if _share_of(film.patient) < params.held_out]
    return [film for film in films if _share_of(film.patient) >= params.held_out], held


def _share_of(patient: str) -> float:
    """A patient's place in [0, 1), the same in every run."""
    return int(hashlib.sha256(f"assay:{patient}".encode()).hexdigest()[:8], 16) / 2**32


def input_path(spec: RunSpec, folder: Path, name: str) -> Path:
    """Where the input `name` of a run lies; relative ones are relative to its folder."""
    path = Path(spec.inputs[name])
    return path if path.is_absolute() else folder / path


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
