"""LocalEngine: the port's engine in this process; loads models by digest, keeps a few, dispatches by kind."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from ml_core import artifacts
from ml_core.contracts import (
    DraftRequest,
    DraftResult,
    EntityState,
    Label,
    ModelDescription,
    ModelKey,
    ModelKind,
    ScoreRequest,
    ScoreResult,
)
from ml_core.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from ml_core.serving.fraud import FraudScorer
    from ml_core.serving.report import ReportDrafter


class LocalEngine:
    """Runs students on this machine. Loaded models are kept by digest, the least recently used going first."""

    def __init__(self, *, capacity: int = 4, tables: Path | None = None) -> None:
        """`capacity`: how many loaded models are kept. `tables`: where `python -m ml_core measure` keeps its tables."""
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.capacity, self.tables = capacity, tables
        self._loaded: OrderedDict[str, FraudScorer | ReportDrafter] = OrderedDict()
        self._lock = threading.RLock()

    def score(self, request: ScoreRequest, /) -> ScoreResult:
        """Score transactions; returns changed states too."""
        return self._fraud(request.model).score(request)

    def learn_labels(
        self, model: ModelKey, states: tuple[EntityState, ...], labels: tuple[Label, ...]
    ) -> tuple[EntityState, ...]:
        """Put labels that became known into the states of their cards and terminals; returns the changed states."""
        return self._fraud(model).learn_labels(states, labels)

    def draft(self, request: DraftRequest, /) -> DraftResult:
        """Draft one report a study."""
        return self._report(request.model).draft(request)

    def describe(self, folder: str, /) -> ModelDescription:
        """Read an artifact's manifest and verify its digest; loads no weights."""
        return artifacts.describe(folder)

    def load(self, model: ModelKey, /) -> None:
        """Load a model now. Raises ArtifactError when the folder does not hold exactly this model."""
        self._get(model)

    def loaded(self) -> tuple[str, ...]:
        """Digests of the models in memory, the least recently used first."""
        return tuple(self._loaded)

    def _fraud(self, model: ModelKey) -> "FraudScorer":
        if model.kind is not ModelKind.FRAUD:
            raise InputError(f"model: a fraud model is needed, not {model.kind}")
        return self._get(model)  # type: ignore[return-value]

    def _report(self, model: ModelKey) -> "ReportDrafter":
        if model.kind is not ModelKind.REPORT:
            raise InputError(f"model: a report model is needed, not {model.kind}")
        return self._get(model)  # type: ignore[return-value]

    def _get(self, model: ModelKey) -> "FraudScorer | ReportDrafter":
        """The loaded model; one thread loads, others that want it wait."""
        with self._lock:
            if model.digest not in self._loaded:
                self._loaded[model.digest] = _load(model, tables=self.tables)
                while len(self._loaded) > self.capacity:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(model.digest)
            return self._loaded[model.digest]


def _load(model: ModelKey, *, tables: Path | None) -> "FraudScorer | ReportDrafter":
    manifest = artifacts.read(model.folder)
    if manifest.digest != model.digest:
        raise ArtifactError(f"{model.folder} holds {manifest.digest}, not {model.digest}")
    if manifest.kind is not model.kind:
        raise ArtifactError(f"{model.folder} holds a {manifest.kind} model, not a {model.kind} model")
    if model.kind is ModelKind.FRAUD:
        from ml_core.serving.fraud import FraudScorer

        return FraudScorer(model.folder, tables=tables)
    from ml_core.serving.report import ReportDrafter

    return ReportDrafter(model.folder, tables=tables)
