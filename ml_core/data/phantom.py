"""Simulated chest films: a parametric thorax under X-rays, with findings whose place and size are known, as DICOM.

Beer-Lambert attenuation, scatter, quantum noise and detector response follow Bushberg et al., The Essential Physics of
Medical Imaging (3rd ed., chapters 3, 4 and 7); anatomy and disease are drawn by hand-made rules, not taken from anyone.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, zoom

from ml_core.data.phantom_body import Body, Map, Rays, body_sample, rays_trace
from ml_core.data.phantom_disease import Disease, body_alter, disease_apply, disease_sample
from ml_core.data.phantom_report import Report, report_write

_MU_SOFT, _MU_LUNG, _MU_BONE, _MU_METAL = 0.19, 0.048, 0.42, 2.2  # per cm, about 70 keV effective


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmFinding:
    """A finding that the film shows: side as the patient's, box as fractions (x, y, width, height), severity (0, 1]."""

    name: str
    kind: str
    side: str
    zone: str
    severity: float
    uncertain: bool
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """One simulated film: 12-bit pixels in uint16, bone bright, what it shows, and a report on it."""

    pixels: NDArray[np.uint16]
    findings: tuple[FilmFinding, ...]
    report: Report
    body: Body
    seed: int


def render(
    seed: int, *, size: int = 256, findings: tuple[Disease, ...] | None = None, body: Body | None = None
) -> Film:
    """Simulate one film of size x size. `findings` None draws them; () is a healthy chest. Same seed, same bits."""
    rng = np.random.default_rng([seed, 7])
    build = body or body_sample(rng)
    diseases = disease_sample(rng, view=build.view) if findings is None else findings
    for disease in diseases:
        build = body_alter(build, disease, rng)
    rays = rays_trace(build, rng, size=size)
    shown = []
    for disease in diseases:
        where = disease_apply(rays, build, disease, rng)
        box = _box(where)
        if box is not None:
            shown.append(_film_finding(disease, box))
    pixels = _expose(rays, build, rng)
    report = report_write(tuple(shown), rng)
    return Film(pixels=pixels, findings=tuple(shown), report=report, body=build, seed=seed)


def _film_finding(disease: Disease, box: tuple[float, float, float, float]) -> FilmFinding:
    return FilmFinding(
        name=disease.name, kind=disease.kind, side=disease.side, zone=disease.zone, severity=disease.severity,
        uncertain=disease.uncertain, box=box,
    )  # fmt: skip


def _box(where: Map) -> tuple[float, float, float, float] | None:
    """The smallest box around what is at least a third as strong as the strongest place; None where nothing shows."""
    peak = float(where.max())
    if peak < 0.02:
        return None
    mask = where > peak / 3
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    size = where.shape[0]
    top, left = rows[0] / size, columns[0] / size
    return (float(left), float(top), float((columns[-1] + 1) / size - left), float((rows[-1] + 1) / size - top))


def _expose(rays: Rays, body: Body, rng: np.random.Generator) -> NDArray[np.uint16]:
    size = rays.x.shape[0]
    soft = np.clip(rays.soft - rays.air, 0.0, None)
    path = _MU_SOFT * soft + _MU_LUNG * rays.air * (1 + 0.22 * rays.vessels) + _MU_BONE * rays.bone
    path += _MU_METAL * rays.metal + rays.extra
    primary = np.exp(-np.clip(path, 0, 12))
    bedside = body.view == "AP"
    ratio = (rng.uniform(0.5, 1.1) if bedside else rng.uniform(0.25, 0.6)) * body.habitus
    small = gaussian_filter(zoom(primary, 32 / size, order=1), 3.2)
    scatter = zoom(small, size / 32, order=1)[:size, :size]
    light = primary + ratio * 0.5 * scatter
    light = gaussian_filter(light, size / 256 * rng.uniform(0.35, 0.7))
    dose = rng.uniform(1.2e4, 4e4) if bedside else rng.uniform(3e4, 1e5)
    light = light + rng.standard_normal((size, size), dtype=np.float32) * np.sqrt(np.clip(light, 1e-6, None) / dose)
    signal = -np.log(np.clip(light, 1e-4, None))
    inner = signal[size // 8 : -size // 8, size // 8 : -size // 8]
    low, high = np.percentile(inner[::4, ::4], [rng.uniform(1, 4), rng.uniform(95, 99.5)])
    grey = (signal - low) / max(high - low, 1e-3)
    grey = 1 / (1 + np.exp(-rng.uniform(3.2, 4.6) * (grey - rng.uniform(0.36, 0.56))))  # film-like response curve
    return (np.clip(_mark(grey, rng), 0, 1) * 4095).astype(np.uint16)


def _mark(grey: Map, rng: np.random.Generator) -> Map:
    """Collimator edges and the side marker that technologists lay on the cassette."""
    size = grey.shape[0]
    if rng.random() < 0.35:
        edge = rng.integers(0, size // 16 + 1, 4)
        shade = np.float32(rng.choice([0.0, 0.02, 0.95]))
        grey[: edge[0]], grey[size - edge[1] :] = shade, shade
        grey[:, : edge[2]], grey[:, size - edge[3] :] = shade, shade
    if rng.random() < 0.7:
        left = rng.random() < 0.7
        place = (size * (0.88 if left else 0.06) + rng.normal(0, 3), size * rng.uniform(0.03, 0.12))
        canvas = Image.new("L", (size, size))
        ImageDraw.Draw(canvas).text(place, "L" if left else "R", fill=255, font_size=max(8, size // 16))
        grey = np.maximum(grey, np.asarray(canvas, dtype=np.float32) / 255)
    return grey


def _main() -> None:
    """`python -m ml_core.data.phantom --out FOLDER`: write DICOM files of invented patients, for demos and tests."""
    from ml_core.data.phantom_dicom import make_studies

    parser = argparse.ArgumentParser(prog="python -m ml_core.data.phantom", description=_main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for study in make_studies(asked.seed, patients=asked.patients):
        for name, data in study.files:
            (asked.out / name).write_bytes(data)


if __name__ == "__main__":
    _main()
