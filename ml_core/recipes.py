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
    return RunSpec(kind=ModelKind.REPORT, recipe="report_dfad_small")


RECIPES: dict[str, Recipe] = {
    "fraud_dfad_int8": fraud_dfad_int8,
    "fraud_dfad_small": fraud_dfad_small,
    "report_dfad_small": report_dfad_small,
}


def recipe(name: str) -> RunSpec:
    """The spec of the recipe `name`. Raises RunError naming those that exist."""
    if name not in RECIPES:
        raise RunError(f"recipe: {name!r} does not exist; there are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()
