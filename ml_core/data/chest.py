"""Chest films as the model gets them (one size, stretched grey values), labelled folders, and what is no film."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from ml_core.data.dicom import Grey, image_read
from ml_core.data.findings import FINDINGS, INDEX, chexpert_names
from ml_core.data.phantom_body import smooth_noise

SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledFilm:
    """One row of a labelled folder; `names` are CheXpert's."""

    path: Path
    image: str
    names: frozenset[str]
    patient: str
    view: str
    split: str


def film_prepare(grey: Grey, *, size: int) -> Grey:
    """Pad to a square, scale to size x size, stretch the 0.5th to the 99.5th percentile; a constant gives zeros."""
    if float(grey.max() - grey.min()) < 1e-3:  # before padding, which would give it an edge
        return np.zeros((size, size), dtype=np.float32)
    height, width = grey.shape
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = grey
    picture = Image.fromarray(square, mode="F").resize((size, size), Image.Resampling.BILINEAR, reducing_gap=None)
    scaled = np.asarray(picture, dtype=np.float32)
    low, high = np.percentile(scaled, [0.5, 99.5])
    if high - low < 1e-3:
        return np.zeros_like(scaled)
    return np.clip((scaled - low) / (high - low), 0, 1).astype(np.float32)


def box_on_image(
    box: tuple[float, float, float, float], *, height: int, width: int
) -> tuple[float, float, float, float] | None:
    """Turn a box on the padded square into fractions of the image itself; None if nothing of it lies on the image."""
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    x0, y0 = (box[0] * side - left) / width, (box[1] * side - top) / height
    x1, y1 = x0 + box[2] * side / width, y0 + box[3] * side / height
    x0, y0, x1, y1 = (min(1.0, max(0.0, value)) for value in (x0, y0, x1, y1))
    return (x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None


def folder_read(labels: Path, *, images: Path, split: str | None = None) -> list[LabelledFilm]:
    """Rows of a labels.csv (image, labels separated by `|`, optional patient, view, split) whose image is there."""
    films = []
    with labels.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if "image" not in row or "labels" not in row:
                raise ValueError(f"{labels} needs the columns image and labels")
            path = images / row["image"]
            if (split is not None and row.get("split", "") != split) or not path.is_file():
                continue
            films.append(LabelledFilm(
                path=path, image=row["image"], names=chexpert_names(row["labels"]), view=row.get("view", ""),
                patient=row.get("patient") or row.get("patient_id") or row["image"], split=row.get("split", ""),
            ))  # fmt: skip
    return films


def label_vector(names: frozenset[str]) -> NDArray[np.float32]:
    """1 where the finding is named, in the order of FINDINGS."""
    vector = np.zeros(len(FINDINGS), dtype=np.float32)
    for name in names:
        vector[INDEX[name]] = 1
    return vector


def file_prepare(path: Path, *, size: int) -> Grey:
    """Read one image file and prepare it. Raises ImageError."""
    return film_prepare(image_read(path.read_bytes()), size=size)


def other_render(seed: int, *, size: int = 256) -> Grey:
    """A simulated picture that is no chest film: noise, texture, a page, a scene, a slice through a body, a limb."""
    rng = np.random.default_rng([seed, 11])
    kinds = (_constant, _white, _cloud, _gradient, _page, _scene, _scene, _slice, _slice, _slice, _limb, _limb, _head)
    return np.clip(kinds[int(rng.integers(len(kinds)))](rng, size), 0, 1).astype(np.float32)


def _constant(rng: np.random.Generator, size: int) -> Grey:
    return np.full((size, size), rng.random(), dtype=np.float32) + rng.standard_normal((size, size)) * rng.choice(
        [0, 1e-3, 0.02]
    )


def _white(rng: np.random.Generator, size: int) -> Grey:
    noise = rng.standard_normal((size, size)) if rng.random() < 0.5 else rng.random((size, size)) * 3 - 1.5
    return gaussian_filter(noise, rng.choice([0, 0.5, 1.5])) * rng.uniform(0.1, 0.4) + 0.5


def _cloud(rng: np.random.Generator, size: int) -> Grey:
    total = sum(smooth_noise(rng, size=size, cells=c) * c ** -rng.uniform(0.2, 1.2) for c in (2, 4, 8, 16, 32, 64))
    return np.asarray(total) * rng.uniform(0.15, 0.5) + 0.5


def _gradient(rng: np.random.Generator, size: int) -> Grey:
    y, x = np.mgrid[0:size, 0:size] / size
    angle = rng.uniform(0, 6.28)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(1, 60))
    return 0.5 + 0.5 * (wave if rng.random() < 0.6 else np.sign(wave))


def _page(rng: np.random.Generator, size: int) -> Grey:
    page = Image.new("L", (size, size), 245)
    pen = ImageDraw.Draw(page)
    for row in range(8, size - 12, int(rng.integers(9, 20))):
        words = " ".join("".join(rng.choice(list("abcdefgilmnorstu"), rng.integers(2, 9))) for _ in range(9))
        pen.text((8, row), words, fill=int(rng.integers(0, 90)), font_size=int(rng.integers(7, 14)))
    grey = np.asarray(page, dtype=np.float32) / 255
    return 1 - grey if rng.random() < 0.4 else grey


def _scene(rng: np.random.Generator, size: int) -> Grey:
    """Overlapping lit shapes on a gradient, as photographs have them."""
    canvas = Image.new("L", (size, size), int(rng.integers(20, 230)))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(3, 40))):
        cx, cy = rng.uniform(0, size, 2)
        w, h = rng.uniform(0.03, 0.4, 2) * size
        box = (cx - w, cy - h, cx + w, cy + h)
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=int(rng.integers(0, 256)))
    grey = np.asarray(canvas, dtype=np.float32) / 255
    grey = gaussian_filter(grey, rng.uniform(0.3, 3)) + 0.15 * smooth_noise(rng, size=size, cells=6)
    return grey + 0.08 * smooth_noise(rng, size=size, cells=40) * rng.random()


def _ellipse(size: int, *, x: float, y: float, a: float, b: float, turn: float = 0.0) -> Grey:
    gy, gx = np.mgrid[0:size, 0:size].astype(np.float32) / size
    dx, dy = gx - x, gy - y
    u, w = dx * np.cos(turn) + dy * np.sin(turn), -dx * np.sin(turn) + dy * np.cos(turn)
    return 1 / (1 + np.exp(np.clip(-(1 - (u / a) ** 2 - (w / b) ** 2) * 30, -30, 30)))


def _slice(rng: np.random.Generator, size: int) -> Grey:
    """An axial slice: body outline, lungs or organs, spine, on black."""
    a, b = rng.uniform(0.36, 0.48), rng.uniform(0.24, 0.36)
    body = _ellipse(size, x=0.5, y=0.5, a=a, b=b)
    grey = body * rng.uniform(0.4, 0.65)
    grey -= 0.12 * (body - _ellipse(size, x=0.5, y=0.5, a=a * 0.93, b=b * 0.91))
    if rng.random() < 0.4:
        for sign in (-1, 1):
            grey *= 1 - rng.uniform(0.7, 0.97) * _ellipse(
                size, x=0.5 + sign * a * 0.5, y=0.49, a=a * 0.36, b=b * 0.68, turn=0.2 * sign
            )
    for _ in range(int(rng.integers(3, 12))):
        x, y = 0.5 + rng.normal(0, a * 0.4), 0.5 + rng.normal(0, b * 0.4)
        part = _ellipse(size, x=x, y=y, a=rng.uniform(0.02, 0.13), b=rng.uniform(0.02, 0.1), turn=rng.uniform(0, 3))
        grey += rng.normal(0, 0.14) * part * body
    grey += 0.45 * _ellipse(size, x=0.5, y=0.5 + b * 0.62, a=0.05, b=0.045)
    return grey + rng.uniform(0.01, 0.05) * gaussian_filter(rng.standard_normal((size, size)), 0.7) * (0.2 + body)


def _head(rng: np.random.Generator, size: int) -> Grey:
    """An axial head: skull ring (bright or dark), two ventricles, cortex texture."""
    a, b = rng.uniform(0.28, 0.36), rng.uniform(0.36, 0.44)
    outer, inner = _ellipse(size, x=0.5, y=0.5, a=a, b=b), _ellipse(size, x=0.5, y=0.5, a=a * 0.92, b=b * 0.93)
    grey = (outer - inner) * rng.uniform(0.1, 1.0) + inner * (0.45 + 0.07 * smooth_noise(rng, size=size, cells=22))
    for sign in (-1, 1):
        grey += rng.choice([-0.3, 0.35]) * _ellipse(
            size, x=0.5 + sign * 0.04, y=0.47, a=0.025, b=0.09, turn=0.25 * sign
        )
    return grey + 0.03 * gaussian_filter(rng.standard_normal((size, size)), 0.6)


def _limb(rng: np.random.Generator, size: int) -> Grey:
    """Long bones in soft tissue under X-rays: a knee, a forearm, a hand."""
    gy, gx = np.mgrid[0:size, 0:size].astype(np.float32) / size
    turn = rng.normal(0, 0.25)
    u = (gx - 0.5) * np.cos(turn) + (gy - 0.5) * np.sin(turn)
    w = -(gx - 0.5) * np.sin(turn) + (gy - 0.5) * np.cos(turn)
    count = int(rng.choice([1, 2, 4, 5]))
    thick = np.zeros_like(u)
    for i in range(count):
        at = (i - (count - 1) / 2) * rng.uniform(0.14, 0.2)
        flesh, bone = (
            rng.uniform(0.09, 0.2) / max(1, count - 1) ** 0.5,
            rng.uniform(0.04, 0.08) / max(1, count - 1) ** 0.5,
        )
        joint = 1 + 0.5 * np.exp(-(((w - rng.normal(0, 0.1)) / 0.06) ** 2))
        thick += 0.9 * np.sqrt(np.clip(1 - ((u - at) / flesh) ** 2, 0, 1))
        tube = np.sqrt(np.clip(1 - ((u - at) / (bone * joint)) ** 2, 0, 1)) - 0.6 * np.sqrt(
            np.clip(1 - ((u - at) / (bone * 0.6)) ** 2, 0, 1)
        )
        thick += 2.2 * tube * (np.abs(w - 0.02) > 0.012)
    return 1 - np.exp(-0.6 * thick) + 0.01 * rng.standard_normal((size, size))
