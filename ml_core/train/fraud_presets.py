"""The named fraud trainings: the big one behind the shipped student, and the small one that an admin starts."""

from dataclasses import replace

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


PRESETS = {
    "fraud_dfad_int8": fraud_dfad_int8,
    "fraud_dfad_schema": fraud_dfad_schema,
    "fraud_dfad_small": fraud_dfad_small,
}


def training_of(spec: RunSpec) -> FraudTraining:
    """The preset that a spec names, with its params (epochs, teacher, student) applied; unknown ones are errors."""
    if spec.recipe not in PRESETS:
        raise RunError(f"recipe {spec.recipe!r} is not one of {', '.join(PRESETS)}")
    training = PRESETS[spec.recipe]()
    if unknown := set(spec.params) - {"epochs", "teacher", "student"}:
        raise RunError(f"params: unknown {', '.join(sorted(unknown))}; known: epochs, teacher, student")
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
    return training
