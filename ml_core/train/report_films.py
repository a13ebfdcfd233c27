"""Films to train the radiology student on: simulated with truth, real labelled and unlabelled, and what is none."""

from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml_core.contracts import FindingState
from ml_core.data.chest import LabelledFilm, file_prepare, film_prepare, label_vector, other_render
from ml_core.data.findings import FINDINGS, INDEX, NIH_TO_CHEXPERT
from ml_core.data.phantom import Film, render
from ml_core.data.phantom_report import Mention, Report, report_write
from ml_core.data.report_tokens import PAD, STATE_INDEX, ReportTokenizer

SIMULATED, LABELLED, UNLABELLED, OTHER = range(4)
_ABSENT = STATE_INDEX[FindingState.ABSENT]


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmSet:
    """Arrays of n films with v wordings each; `known` says which findings the labels speak of; boxes are x y w h."""

    images: NDArray[np.uint8]  # n g g
    kind: NDArray[np.int8]  # n
    states: NDArray[np.int8]  # n v 14
    known: NDArray[np.bool_]  # n 14
    boxes: NDArray[np.float32]  # n 14 4; zero where there is none
    texts: NDArray[np.int16]  # n v tokens

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: NDArray[np.int64]) -> "FilmSet":
        """The given rows."""
        return FilmSet(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def films_join(sets: Sequence[FilmSet]) -> FilmSet:
    """All films of several sets, in order."""
    return FilmSet(**{field.name: np.concatenate([getattr(s, field.name) for s in sets]) for field in fields(FilmSet)})


def films_simulate(
    seeds: Sequence[int], *, size: int, tokenizer: ReportTokenizer, tokens: int, wordings: int = 2, processes: int = 1
) -> FilmSet:
    """Render phantoms, one a seed, on `processes` processes."""
    chunks = [list(seeds[start : start + 64]) for start in range(0, len(seeds), 64)]
    jobs = [(chunk, size, tokenizer.json, tokens, wordings) for chunk in chunks]
    if processes == 1:
        return films_join([_simulate_chunk(job) for job in jobs])
    with ProcessPoolExecutor(processes) as pool:
        return films_join(_in_order(pool, jobs))


def _in_order(pool: Executor, jobs: list[tuple[list[int], int, str, int, int]]) -> list[FilmSet]:
    return list(pool.map(_simulate_chunk, jobs))


def _simulate_chunk(job: tuple[list[int], int, str, int, int]) -> FilmSet:
    seeds, size, json, tokens, wordings = job
    tokenizer = ReportTokenizer(json)
    return films_join([_simulated(render(seed, size=size), size, tokenizer, tokens, wordings) for seed in seeds])


def _simulated(film: Film, size: int, tokenizer: ReportTokenizer, tokens: int, wordings: int) -> FilmSet:
    rng = np.random.default_rng([film.seed, 23])
    reports = [film.report, *(report_write(film.findings, rng) for _ in range(wordings - 1))]
    boxes = np.zeros((1, len(FINDINGS), 4), dtype=np.float32)
    for finding in film.findings:
        boxes[0, INDEX[finding.name]] = _union(boxes[0, INDEX[finding.name]], finding.box)
    image = film_prepare(film.pixels.astype(np.float32) / 4095, size=size)
    return _one(image, SIMULATED, reports, np.ones(len(FINDINGS), dtype=bool), boxes, tokenizer, tokens)


def _union(old: NDArray[np.float32], new: tuple[float, float, float, float]) -> NDArray[np.float32]:
    if not old.any():
        return np.asarray(new, dtype=np.float32)
    x0, y0 = min(old[0], new[0]), min(old[1], new[1])
    x1, y1 = max(old[0] + old[2], new[0] + new[2]), max(old[1] + old[3], new[1] + new[3])
    return np.asarray([x0, y0, x1 - x0, y1 - y0], dtype=np.float32)


def films_labelled(
    films: Sequence[LabelledFilm], *, size: int, tokenizer: ReportTokenizer, tokens: int, wordings: int, seed: int = 0
) -> FilmSet:
    """Real films with labels; their wordings state what is labelled without side, place or size (nobody told us)."""
    known = np.zeros(len(FINDINGS), dtype=bool)
    for name in NIH_TO_CHEXPERT.values():
        known[INDEX[name]] = True
    rng = np.random.default_rng([seed, 29])
    boxes = np.zeros((1, len(FINDINGS), 4), dtype=np.float32)
    parts = []
    for film in films:
        mentions = tuple(Mention(name=name) for name in sorted(film.names) if name != "No Finding")
        reports = [report_write(mentions, rng) for _ in range(wordings)]
        parts.append(_one(file_prepare(film.path, size=size), LABELLED, reports, known, boxes, tokenizer, tokens))
    return films_join(parts)


def films_plain(images: Sequence[NDArray[np.float32]], *, kind: int, tokens: int, wordings: int) -> FilmSet:
    """Prepared pictures without any label but what they are: unlabelled chest films, or no chest films at all."""
    n = len(images)
    return FilmSet(
        images=np.stack([np.round(image * 255).astype(np.uint8) for image in images]),
        kind=np.full(n, kind, dtype=np.int8),
        states=np.full((n, wordings, len(FINDINGS)), _ABSENT, dtype=np.int8),
        known=np.zeros((n, len(FINDINGS)), dtype=bool),
        boxes=np.zeros((n, len(FINDINGS), 4), dtype=np.float32),
        texts=np.full((n, wordings, tokens), PAD, dtype=np.int16),
    )


def others_simulate(seeds: Sequence[int], *, size: int, processes: int = 1) -> list[NDArray[np.float32]]:
    """Simulated pictures that are no chest films, prepared, on `processes` processes."""
    jobs = [(seed, size) for seed in seeds]
    if processes == 1:
        return [_other(job) for job in jobs]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(_other, jobs, chunksize=32))


def _other(job: tuple[int, int]) -> NDArray[np.float32]:
    seed, size = job
    return film_prepare(other_render(seed, size=size), size=size)


def files_prepare(paths: Sequence[Path], *, size: int) -> list[NDArray[np.float32]]:
    """Read and prepare image files."""
    return [file_prepare(path, size=size) for path in paths]


def presence(films: FilmSet) -> NDArray[np.float32]:
    """1 where a finding is positive or uncertain (n 14)."""
    limit = STATE_INDEX[FindingState.ABSENT]
    state = films.states[:, 0]
    return (
        (state == STATE_INDEX[FindingState.POSITIVE])
        | ((state != limit) & (state == STATE_INDEX[FindingState.UNCERTAIN]))
    ).astype(np.float32)


def labels_matrix(films: Sequence[LabelledFilm]) -> NDArray[np.float32]:
    """CheXpert labels of real films (n 14)."""
    return np.stack([label_vector(film.names) for film in films])


def _one(
    image: NDArray[np.float32],
    kind: int,
    reports: list[Report],
    known: NDArray[np.bool_],
    boxes: NDArray[np.float32],
    tokenizer: ReportTokenizer,
    tokens: int,
) -> FilmSet:
    states = np.asarray([[STATE_INDEX[report.states[name]] for name in FINDINGS] for report in reports], dtype=np.int8)
    texts = np.full((len(reports), tokens), PAD, dtype=np.int16)
    for row, report in enumerate(reports):
        ids = tokenizer.encode_report(report, limit=tokens)
        texts[row, : len(ids)] = ids
    return FilmSet(
        images=np.round(image * 255).astype(np.uint8)[None],
        kind=np.asarray([kind], dtype=np.int8),
        states=states[None],
        known=known[None],
        boxes=boxes,
        texts=texts[None],
    )
