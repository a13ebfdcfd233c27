"""Recipes: one function per named run, returning its complete spec; the name goes into the manifest."""

from collections.abc import Callable

from ml_core.contracts import ModelKind, RunSpec
from ml_core.distill.tasks.request import Distillation, General
from ml_core.errors import RunError

Recipe = Callable[[], RunSpec]


def fraud_dfad_int8() -> RunSpec:
    """The shipped fraud student: simulated banks, LightGBM and transformer teachers, DFAD, INT8; wants a GPU."""
    return RunSpec(kind=ModelKind.FRAUD, recipe="fraud_dfad_int8")


def fraud_dfad_schema() -> RunSpec:
    """Any labelled table → INT8 student on two cores in minutes; inputs transactions and mapping (TOML), see docs."""
    return RunSpec(kind=ModelKind.FRAUD, recipe="fraud_dfad_schema")


def fraud_dfad_small() -> RunSpec:
    """LightGBM teacher → small INT8 transformer by DFAD; what the training page starts."""
    return RunSpec(kind=ModelKind.FRAUD, recipe="fraud_dfad_small")


def fraud_week() -> RunSpec:
    """One week's labels of a bank → INT8 student; input transactions, params first_day (ISO), rows, unlabelled."""
    return RunSpec(kind=ModelKind.FRAUD, recipe="fraud_week")


def fraud_past() -> RunSpec:
    """All labels of a bank's past → INT8 student; input transactions, params first_day (of the last week) and rows."""
    return RunSpec(kind=ModelKind.FRAUD, recipe="fraud_past")


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


def report_chain_int8() -> RunSpec:
    """CNN → ViT-B with a 6 x 768 decoder → drafter of the shipped size by DFAD, INT8; wants a GPU for nine minutes.

    Inputs as for report_dfad_int8, `val` (folder with labels.csv and images/): scored, never learnt from, and, where
    the students are to go on from an artifact instead of random weights, `start`.
    """
    params: dict[str, int | float | str] = {
        "teacher": "chain", "phantoms": 16000, "others": 2500, "teacher_steps": 400, "teacher_rate": 3e-4,
        "large_steps": 1200, "student_steps": 1500, "batch": 128, "rate": 9e-4, "device": "cuda", "seconds": 500.0,
        "reserve": 75.0,
    }  # fmt: skip
    return RunSpec(kind=ModelKind.REPORT, recipe="report_chain_int8", params=params)


RECIPES: dict[str, Recipe] = {
    "fraud_dfad_int8": fraud_dfad_int8,
    "fraud_dfad_schema": fraud_dfad_schema,
    "fraud_dfad_small": fraud_dfad_small,
    "fraud_past": fraud_past,
    "fraud_week": fraud_week,
    "report_chain_int8": report_chain_int8,
    "report_dfad_int8": report_dfad_int8,
    "report_dfad_small": report_dfad_small,
}


def recipe(name: str) -> RunSpec:
    """The spec of the recipe `name`. Raises RunError naming those that exist."""
    if name not in RECIPES:
        raise RunError(f"recipe: {name!r} does not exist; there are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()


def digits_cnn_dfad() -> Distillation:
    """CNN → ViT 19 times smaller on scikit-learn's digits; half a minute on one core."""
    return Distillation(name="digits_cnn_dfad", case="cnn>vit32x3/digits")


def digits_vit_dfad() -> Distillation:
    """ViT → ViT 17 times smaller on scikit-learn's digits; a minute on one core."""
    return Distillation(name="digits_vit_dfad", case="vit96x6>vit32x3/digits")


def fraud_trees_dfad() -> Distillation:
    """LightGBM → small transformer on simulated banks, measured on banks held out."""
    return Distillation(name="fraud_trees_dfad", case="lightgbm>tab32x3/fraud")


def fraud_transformer_dfad() -> Distillation:
    """Transformer → one 30 times smaller on simulated banks, measured on banks held out."""
    return Distillation(name="fraud_transformer_dfad", case="tab128x5>tab32x3/fraud")


def sst2_22m_dfad() -> Distillation:
    """all-mpnet-base-v2 → 6 × 384 on SST-2; wants a GPU; inputs text_data, teacher, and student for its start."""
    return Distillation(name="sst2_22m_dfad", case="mpnet>bert6x384/sst2")


def films_dfad() -> Distillation:
    """EfficientNet-Lite0 → tiny ViT on labelled chest films; inputs films and stem (its ImageNet tensors)."""
    return Distillation(name="films_dfad", case="efficientnet-lite0>stem-vit64x4/films")


def text_general_21m() -> General:
    """The start of factor4x768: 4 × 768, embedding of 128, taught all-mpnet-base-v2's features; wants a GPU."""
    return General(name="text_general_21m", student="factor4x768")


def text_general_5m() -> General:
    """The start of factor4x256, 21 times smaller than its teacher; wants a GPU."""
    return General(name="text_general_5m", student="factor4x256", rate=1e-3)


DISTILLATIONS: dict[str, Callable[[], Distillation | General]] = {
    "digits_cnn_dfad": digits_cnn_dfad,
    "digits_vit_dfad": digits_vit_dfad,
    "films_dfad": films_dfad,
    "fraud_transformer_dfad": fraud_transformer_dfad,
    "fraud_trees_dfad": fraud_trees_dfad,
    "sst2_22m_dfad": sst2_22m_dfad,
    "text_general_21m": text_general_21m,
    "text_general_5m": text_general_5m,
}


def distillation(name: str) -> RunSpec | Distillation | General:
    """What `distill --recipe NAME` runs: a product's training, a benchmark's case, a general stage. Else a RunError."""
    if name in DISTILLATIONS:
        return DISTILLATIONS[name]()
    if name not in RECIPES:
        raise RunError(f"recipe: {name!r} does not exist; there are {', '.join(sorted({**RECIPES, **DISTILLATIONS}))}")
    return recipe(name)
