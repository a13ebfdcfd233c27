"""The port: the one way from the platform to the engine, and the one place that imports ml_core.engine."""

from functools import lru_cache
from typing import Protocol

from django.conf import settings

from ml_core.contracts import (
    DraftRequest,
    DraftResult,
    EntityState,
    Label,
    ModelDescription,
    ModelKey,
    ScoreRequest,
    ScoreResult,
)


class Engine(Protocol):
    """What the platform asks of an engine. Raises ml_core.errors.EngineError subclasses only."""

    def score(self, request: ScoreRequest, /) -> ScoreResult:
        """Score transactions; returns changed states too."""
        ...

    def learn_labels(
        self, model: ModelKey, states: tuple[EntityState, ...], labels: tuple[Label, ...]
    ) -> tuple[EntityState, ...]:
        """Put labels that became known into the states of their cards and terminals; returns the changed states."""
        ...

    def draft(self, request: DraftRequest, /) -> DraftResult:
        """Draft one report a study."""
        ...

    def describe(self, folder: str, /) -> ModelDescription:
        """Read an artifact's manifest and verify its digest; loads no weights."""
        ...

    def load(self, model: ModelKey, /) -> None:
        """Load a model into memory now (workers do so before they say that they are ready)."""
        ...


@lru_cache(maxsize=1)
def get_engine() -> Engine:
    """The engine that settings.ENGINE names: `local` (ml_core) or `fake` (tests)."""
    if settings.ENGINE == "fake":
        from apps.engine.fake import FakeEngine

        return FakeEngine()
    if settings.ENGINE == "local":
        from ml_core.engine import LocalEngine

        return LocalEngine(tables=settings.ENGINE_TABLES_DIR)
    raise ValueError(f"ENGINE must be local or fake, not {settings.ENGINE!r}")
