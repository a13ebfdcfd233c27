"""scikit-learn's digits (8 × 8, 1,797 of them): a CNN and a ViT as teachers, a ViT at least 16 times smaller."""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from ml_core.distill.features import Features
from ml_core.distill.tasks.metrics import accuracy
from ml_core.distill.tasks.task import Batch, Case, Fit, Learner, Split, Task
from ml_core.distill.teachers.vision import vision_create
from ml_core.models.small_cnn import SmallCnn
from ml_core.seed import numpy_generator

FAMILY = "digits"
_SIDE = 4  # tokens a side: patches of 2 × 2
_CLASSES = 10


def cases(*, quick: bool = False) -> list[Case]:
    """cnn>vit-tiny (cross-architecture), vit>vit-tiny, and vit>vit-tiny in 4 and in 8 bits, all from random weights."""
    epochs = 1 if quick else 9  # of 5,400 pictures: 600, each in nine places
    student = _vit("vit32x3", width=32, depth=3, fit=Fit(epochs=epochs, batch=64, lr=3e-3))
    integer = [replace(student, name=f"{student.name}-int{bits}", bits=bits) for bits in (4, 8)]
    cnn_fit = Fit(epochs=epochs, batch=64, lr=1e-3)
    vit_fit = Fit(epochs=1 if quick else 27, batch=64, lr=2e-3)
    cnn = Learner(name="cnn", start="random", build=_cnn, show=_cnn_show, fit=cnn_fit)
    vit = _vit("vit96x6", width=96, depth=6, fit=vit_fit)
    load = _quick if quick else _whole
    return [
        Case(family=FAMILY, task="digits", teacher=cnn, student=student, load=load),
        *(
            Case(family=FAMILY, task="digits", teacher=vit, student=one, load=load, relation_heads=4)
            for one in (student, *integer)
        ),
    ]


@cache
def digits(*, train: int, dev: int, test: int) -> Task:
    """Of one fixed order the first train, the next are dev, then test: few to learn from, so that teaching shows."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = numpy_generator(0, "digits").permutation(len(found.target))[: train + dev + test]
    images = torch.from_numpy(found.images[order] / 16.0).float()[:, None]
    labels = torch.from_numpy(found.target[order])
    parts = [
        Split(inputs={"image": x.clone()}, labels=y.clone())
        for x, y in zip(images.split([train, dev, test]), labels.split([train, dev, test]), strict=True)
    ]
    return Task(
        name="digits",
        kind="classes",
        classes=_CLASSES,
        train=shifted(parts[0]),
        dev=parts[1],
        test=parts[2],
        metrics={"accuracy": accuracy},
    )


def shifted(split: Split) -> Split:
    """Every picture nine times: moved by up to one pixel each way, zeros come in.

    All variations stand in the split itself, so that the teacher sees each of them once and not in every training.
    """
    padded = functional.pad(split.inputs["image"], (1, 1, 1, 1))
    h, w = split.inputs["image"].shape[-2:]
    moved = [padded[..., y : y + h, x : x + w] for y in range(3) for x in range(3)]
    return Split(inputs={"image": torch.cat(moved)}, labels=split.labels.repeat(len(moved)))


def _whole() -> Task:
    return digits(train=600, dev=400, test=797)


def _quick() -> Task:
    return digits(train=24, dev=64, test=96)


def _vit(name: str, *, width: int, depth: int, fit: Fit) -> Learner:
    def build(task: Task) -> nn.Module:
        return vision_create(
            "vit_tiny_patch16_224", side=_SIDE, head_layers=(-1,), frozen=False, img_size=2 * _SIDE, patch_size=2,
            in_chans=1, embed_dim=width, depth=depth, num_heads=4, mlp_ratio=2.0, num_classes=task.classes,
            global_pool="avg", class_token=False,
            weight_init="jax",  # timm's own (σ = 0.02) lets so narrow a model learn hardly anything at first
        )  # fmt: skip

    return Learner(name=name, start="random", build=build, show=_vit_show, fit=fit)


def _vit_show(model: nn.Module, batch: Batch) -> Features:
    return model(batch["image"])


def _cnn(task: Task) -> nn.Module:
    return SmallCnn(classes=task.classes)


def _cnn_show(model: nn.Module, batch: Batch) -> Features:
    shown = model(batch["image"])
    layers = tuple(_tokens(x) for x in shown.maps)
    return Features(layers=layers, pooled=shown.pooled, logits=shown.logits, names=("stages.0", "stages.1", "stages.2"))


def _tokens(maps: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(maps, _SIDE).flatten(2).transpose(1, 2)
