"""Recipes: one function per named run, returning its complete spec; the name goes into the manifest."""

from collections.abc import Callable

from ml_core.contracts import ModelKind, RunSpec
from ml_core.errors import RunError

Recipe = Callable[[], RunSpec]


def fraud_dfad_int8() -> RunSpec:
    """The shipped fraud student: simulated banks, LightGBM and transformer teachers, DFAD, INT8; wants a GPU."""
    return RunSpec(kind=ModelKind.FRAUD, recipe="fraud_dfad_int8")


def fraud_dfad_small() -> RunSpec:
    """LightGBM teacher → small INT8 transformer by DFAD; what the training page starts."""
    return RunSpec(kind=ModelKind.FRAUD, recipe="fraud_dfad_small")


def report_dfad_small() -> RunSpec:
    """Teacher on simulated films → small INT8 drafter; what the training page starts."""
    params: dict[str, int | float | str] = {"phantoms": 96, "others": 16, "batch": 8, "epochs": 2, "teacher": "self"}
    return RunSpec(kind=ModelKind.REPORT, recipe="report_dfad_small", params=params)


def report_dfad_int8() -> RunSpec:
    """The shipped drafter: CNN teacher with ImageNet weights → ViT by DFAD, INT8; wants a GPU and these inputs:

    labelled (folder with labels.csv), unlabelled and others (folders of pictures), stem (EfficientNet-Lite0 tensors).
    """
    params: dict[str, int | float | str] = {
        "phantoms": 16000, "others": 2500, "teacher_steps": 400, "teacher_rate": 3e-4, "student_steps": 950,
        "batch": 160, "rate": 9e-4, "device": "cuda",
    }  # fmt: skip
    return RunSpec(kind=ModelKind.REPORT, recipe="report_dfad_int8", params=params)


RECIPES: dict[str, Recipe] = {
    "fraud_dfad_int8": fraud_dfad_int8,
    "fraud_dfad_small": fraud_dfad_small,
    "report_dfad_int8": report_dfad_int8,
    "report_dfad_small": report_dfad_small,
}


def recipe(name: str) -> RunSpec:
    """The spec of the recipe `name`. Raises RunError naming those that exist."""
    if name not in RECIPES:
        raise RunError(f"recipe: {name!r} does not exist; there are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()
