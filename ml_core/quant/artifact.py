"""Turning a float artifact into an INT8 one without training: what `python -m ml_core quantize` does."""

from pathlib import Path

from torch import nn

from ml_core import artifacts
from ml_core.config import from_mapping
from ml_core.contracts import ModelDescription, ModelKind
from ml_core.errors import InputError
from ml_core.quant.describe import LayerReport
from ml_core.quant.quantizer import Quantizer
from ml_core.quant.state import quantized_state


def quantize_artifact(folder: Path, *, out: Path, bits: int = 8) -> tuple[ModelDescription, list[LayerReport]]:
    """Write the integer form (INT8, or of 6 or 4 bits) of the float artifact in `folder` to `out`.

    Metrics are not carried over, since nobody measured them on the new model; its teacher is the old one. Raises
    InputError when the artifact is quantized already, and for other numbers of bits.
    """
    manifest = artifacts.read(folder)
    tensors = artifacts.load_tensors(folder)
    if any(name.endswith("weight_scale") for name in tensors):
        raise InputError(f"{folder} is quantized already")
    model = build(manifest.kind, config=manifest.config)
    model.load_state_dict(tensors)
    quantized, report = Quantizer(model, bits=bits).convert()
    extra = {
        name: (folder / name).read_bytes() for name in manifest.files if name not in {artifacts.WEIGHTS, artifacts.CARD}
    }
    note = f"INT{bits} after training (W{bits}A{bits}) of {manifest.digest}; unmeasured."
    description = artifacts.write(
        out,
        kind=manifest.kind,
        name=f"{manifest.name} INT{bits}",
        recipe=manifest.recipe,
        config=manifest.config,
        tensors=quantized_state(quantized),
        metrics={},
        data_digest=manifest.data_digest,
        teacher_digest=manifest.digest,
        parameters=manifest.parameters,
        licence=manifest.licence,
        card=f"{(folder / artifacts.CARD).read_text()}\n\n{note}\n",
        extra_files=extra,
    )
    return description, report


def build(kind: ModelKind, *, config: dict[str, object]) -> nn.Module:
    """The float architecture that a manifest's config describes, weights not loaded."""
    student = config["student"]
    assert isinstance(student, dict)
    if kind is ModelKind.FRAUD:
        from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig

        return FraudStudent(from_mapping(FraudStudentConfig, student, where="config.student"))
    from ml_core.models.report_student import ReportStudent, ReportStudentConfig

    return ReportStudent(from_mapping(ReportStudentConfig, student, where="config.student"))
