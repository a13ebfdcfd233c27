"""The named fraud trainings: the big one behind the shipped student, and the small one that an admin starts."""

from dataclasses import replace
from datetime import date

from ml_core.contracts import RunSpec
from ml_core.data.fraud_features import CHANNELS, FEATURES
from ml_core.distill.dfad import DFADConfig
from ml_core.errors import RunError
from ml_core.models.fraud_student import FraudStudentConfig
from ml_core.train.fraud_fit import FitSettings
from ml_core.train.fraud_stages import FraudTraining
from ml_core.train.fraud_teacher import TreeSettings

SIZES = {
    "base": FraudStudentConfig(features=len(FEATURES), channels=len(CHANNELS)),
    "small": FraudStudentConfig(features=len(FEATURES), channels=len(CHANNELS), d=48, ffn=96, wide=96),
}
TEACHERS = ("lightgbm", "lightgbm+transformer")


def fraud_dfad_int8() -> FraudTraining:
    """The shipped student: 112 simulated banks, LightGBM and a transformer as teachers; needs a GPU and 16 cores."""
    return FraudTraining(
        name="fraud_dfad_int8",
        banks=112,
        guard_banks=12,
        teacher="lightgbm+transformer",
        trees=TreeSettings(trees=280, rows=2_500_000, threads=13),
        transformer_fit=FitSettings(epochs=30, batch=4_096, rate=1.5e-3, seconds=130),
        student_fit=FitSettings(epochs=60, batch=4_096, rate=3e-3, seconds=115),
        dfad=DFADConfig(alpha=0.1, token_share=1.0),
    )


def fraud_dfad_small() -> FraudTraining:
    """Minutes on two cores, from the labelled transactions of one bank, starting from the champion."""
    return FraudTraining(
        name="fraud_dfad_small",
        trees=TreeSettings(trees=150, leaves=15, min_leaf=50),
        student_fit=FitSettings(epochs=2, batch=512, rate=3e-4, seconds=150),
        transformer=FraudStudentConfig(
            features=len(FEATURES), channels=len(CHANNELS), card_tokens=24, terminal_tokens=32, layers=3, ffn=256
        ),
        transformer_fit=FitSettings(epochs=1, batch=512, rate=1e-3, seconds=90),
        dfad=DFADConfig(alpha=0.1, token_share=1.0),
        quantize_rows=20_000,
        from_champion=True,
        device="cpu",
    )


def fraud_dfad_schema() -> FraudTraining:
    """Minutes on two cores, from random weights, on a table of any schema that a mapping declares."""
    return FraudTraining(
        name="fraud_dfad_schema",
        trees=TreeSettings(trees=200, leaves=7, min_leaf=100),
        student_fit=FitSettings(epochs=10, batch=256, rate=1.5e-3, decay=0.05, seconds=1_500),
        dfad=DFADConfig(alpha=0.1, token_share=1.0),
        quantize_rows=20_000,
        device="cpu",
    )


def fraud_week() -> FraudTraining:
    """From one week's labels of one bank (the Handbook's standard protocol); wants a GPU, minutes of it.

    The trees' settings were chosen on the Handbook's validation weeks; the networks' have not run in full yet.
    """
    return FraudTraining(
        name="fraud_week",
        protocol="week",
        teacher="lightgbm+transformer",
        trees=TreeSettings(trees=200, leaves=7, min_leaf=100),
        transformer_fit=FitSettings(epochs=6, batch=512, rate=1e-3, decay=0.05, seconds=60),
        student_fit=FitSettings(epochs=10, batch=256, rate=1.5e-3, decay=0.05, seconds=75),
        dfad=DFADConfig(alpha=0.1, token_share=1.0),
        quantize_rows=20_000,
    )


def fraud_past() -> FraudTraining:
    """From all labels of one bank's past, up to the same day; wants a GPU, minutes of it."""
    return replace(
        fraud_week(),
        name="fraud_past",
        protocol="past",
        trees=TreeSettings(trees=300, leaves=7),
        table_rows=500_000,
        transformer_fit=FitSettings(epochs=6, batch=2_048, rate=1.5e-3, decay=0.05, seconds=90),
        student_fit=FitSettings(epochs=10, batch=2_048, rate=3e-3, decay=0.05, seconds=90),
    )


PRESETS = {
    "fraud_dfad_int8": fraud_dfad_int8,
    "fraud_dfad_schema": fraud_dfad_schema,
    "fraud_dfad_small": fraud_dfad_small,
    "fraud_past": fraud_past,
    "fraud_week": fraud_week,
}


def training_of(spec: RunSpec) -> FraudTraining:
    """The preset that a spec names, with its params applied; unknown ones are errors.

    Params: epochs, teacher, student; and of those that learn by weeks first_day (ISO), rows (genuine ones to learn
    from, the others are thinned out) and unlabelled (rows).
    """
    if spec.recipe not in PRESETS:
        raise RunError(f"recipe {spec.recipe!r} is not one of {', '.join(PRESETS)}")
    training = PRESETS[spec.recipe]()
    known = (
        "epochs",
        "teacher",
        "student",
        *(() if training.protocol == "table" else ("first_day", "rows", "unlabelled")),
    )
    if unknown := set(spec.params) - set(known):
        raise RunError(f"params: unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if "epochs" in spec.params:
        epochs = int(spec.params["epochs"])
        if not 1 <= epochs <= 50:
            raise RunError("epochs: 1 to 50")
        seconds = training.student_fit.seconds * max(1.0, epochs / training.student_fit.epochs)
        training = replace(training, student_fit=replace(training.student_fit, epochs=epochs, seconds=seconds))
    if "teacher" in spec.params:
        if spec.params["teacher"] not in TEACHERS:
            raise RunError(f"teacher: one of {', '.join(TEACHERS)}")
        training = replace(training, teacher=spec.params["teacher"])
    if "student" in spec.params:
        if spec.params["student"] not in SIZES:
            raise RunError(f"student: one of {', '.join(SIZES)}")
        training = replace(training, student=SIZES[str(spec.params["student"])])
    if "first_day" in spec.params:
        training = replace(training, first_day=_iso_day(spec.params["first_day"]))
    if "rows" in spec.params:
        training = replace(training, table_rows=int(spec.params["rows"]))
    if "unlabelled" in spec.params:
        training = replace(training, unlabelled_rows=int(spec.params["unlabelled"]))
    return training


def _iso_day(text: int | float | str) -> str:
    try:
        return date.fromisoformat(str(text)).isoformat()
    except ValueError:
        raise RunError(f"first_day: {text!r} is not a day such as 2018-07-25") from None
