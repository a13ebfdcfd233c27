"""Chest films with findings: an EfficientNet-Lite0 as teacher, a tiny ViT on the first stages of one as student."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.nn import functional

from ml_core.data.chest import LabelledFilm, file_prepare, folder_read, label_vector
from ml_core.data.findings import FINDINGS, INDEX, NIH_TO_CHEXPERT
from ml_core.distill.features import Features
from ml_core.distill.tasks.metrics import macro_auc
from ml_core.distill.tasks.task import Batch, Case, Fit, Learner, Split, Task
from ml_core.distill.teachers.own import cnn_features
from ml_core.distill.teachers.vision import vision_create
from ml_core.errors import InputError
from ml_core.models.cnn_teacher import CnnTeacher, stem_weights_load
from ml_core.models.report_student import StemEmbed
from ml_core.seed import derive

FAMILY = "films"
SIZE = 192
_PATCH = 16
_DEV_SHARE = 0.15
_STAGES = 3  # of the stem; they reach an eighth of the side, and a fourth one would be most of the student


def cases(folder: Path, *, stem: Path | None = None, quick: bool = False) -> list[Case]:
    """cnn>stem-vit; `stem`: ImageNet tensors in timm's names, for the teacher and for the student's stem."""
    if not (folder / "labels.csv").exists():
        raise InputError(f"{folder}: no labels.csv")
    size = 64 if quick else SIZE
    weights = "random" if stem is None else f"ImageNet ({stem.name})"
    fit = Fit(epochs=1 if quick else 20, batch=32, lr=5e-4, weight_decay=0.05)
    teacher = Learner(
        name="efficientnet-lite0",
        start=weights,
        build=partial(_teacher, stem=stem),
        show=partial(_teacher_show, side=size // _PATCH),
        fit=Fit(epochs=1 if quick else 12, batch=32, lr=3e-4, weight_decay=0.05),
    )
    student = Learner(
        name="stem-vit64x4",
        start="random" if stem is None else f"stem {weights}, the rest random",
        build=partial(_student, stem=stem, size=size),
        show=_student_show,
        fit=fit,
    )
    load = partial(films_task, folder, size=size, most=48 if quick else 0)
    return [Case(family=FAMILY, task="films", teacher=teacher, student=student, load=load)]


@cache
def films_task(folder: Path, *, size: int, most: int = 0) -> Task:
    """Rows of labels.csv: split "val" is the test; of the others 15% of the patients, by hash, are dev.

    Findings that the folder's names cannot state are unknown (−1). `most` > 0: only so many films a split.
    """
    images = folder / "images" if (folder / "images").is_dir() else folder
    films = folder_read(folder / "labels.csv", images=images)
    test = [film for film in films if film.split == "val"]
    rest = [film for film in films if film.split != "val"]
    dev = [film for film in rest if _share_of(film.patient) < _DEV_SHARE]
    train = [film for film in rest if _share_of(film.patient) >= _DEV_SHARE]
    if not (test and dev and train):
        raise InputError(f"{folder}: needs films of split val and of several patients besides")
    splits = [_split(part[: most or None], size=size) for part in (train, dev, test)]
    return Task(
        name="films",
        kind="findings",
        classes=len(FINDINGS),
        train=splits[0],
        dev=splits[1],
        test=splits[2],
        metrics={"macro auc": macro_auc()},
        prepare=_widened,
        augment=varied,
    )


def varied(batch: Batch, generator: Generator) -> Batch:
    """Brighter or darker, more or less contrast, moved by up to a sixteenth of the side (one move a batch)."""
    images = batch["image"]
    b, side = len(images), images.shape[-1]
    most = max(1, side // 16)
    moves = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    contrast, shift = (torch.rand(b, 1, 1, 1, generator=generator).to(images.device) - 0.5 for _ in range(2))
    moved = torch.roll(images, moves, (2, 3))
    return batch | {"image": ((moved - 0.5) * (1.0 + 0.4 * contrast) + 0.5 + 0.2 * shift).clamp(0.0, 1.0)}


def _widened(batch: Batch) -> Batch:
    return batch | {"image": batch["image"].float() / 255}


def _split(films: Sequence[LabelledFilm], *, size: int) -> Split:
    known = np.zeros(len(FINDINGS), dtype=bool)
    known[[INDEX[name] for name in NIH_TO_CHEXPERT.values()]] = True
    labels = np.stack([np.where(known, label_vector(film.names), -1.0) for film in films])
    pixels = np.stack([np.round(file_prepare(film.path, size=size) * 255) for film in films]).astype(np.uint8)
    return Split(inputs={"image": torch.from_numpy(pixels)[:, None]}, labels=torch.from_numpy(labels).float())


def _share_of(patient: str) -> float:
    return derive(0, "films", patient) / 2**63


class _Stem(StemEmbed):
    """Three stages, then means of 2 × 2: a sixteenth of the side. VisionTaps asks for dynamic_feat_size besides."""

    def _maps(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(super()._maps(images), 2)

    def dynamic_feat_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // _PATCH, size[1] // _PATCH


def _teacher(task: Task, *, stem: Path | None) -> nn.Module:
    model = CnnTeacher()
    if stem is not None:
        stem_weights_load(model.net, _tensors(stem))
    return model


def _teacher_show(model: nn.Module, batch: Batch, *, side: int) -> Features:
    return cnn_features(model, batch["image"], side=side)


def _student(task: Task, *, stem: Path | None, size: int) -> nn.Module:
    options: dict[str, Any] = {
        "img_size": size, "in_chans": 1, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0,
        "num_classes": task.classes,
        "embed_layer": partial(_Stem, stem="tf_efficientnet_lite0", stages=_STAGES),
    }  # fmt: skip
    model = vision_create("vit_tiny_patch16_224", side=size // _PATCH, frozen=False, **options)
    if stem is not None:
        stem_weights_load(model.net.patch_embed, _tensors(stem))
    return model


def _student_show(model: nn.Module, batch: Batch) -> Features:
    shown = model(batch["image"])
    return replace(shown, logits=shown.logits[..., None])


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: tensors are read from .safetensors")
    return load_file(path)
