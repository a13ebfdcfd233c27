"""A champion report model for tests of radiology: the registry's answer, without a registered artifact."""

import pytest

from apps.core import clock
from apps.registry import api as registry
from apps.registry.contracts import ModelRef
from ml_core.contracts import ModelKey, ModelKind

DIGEST = "ab" * 32


def fake_champion(monkeypatch: pytest.MonkeyPatch) -> str:
    """From now on the registry names a champion that the fake engine accepts; returns its digest."""
    key = ModelKey(kind=ModelKind.REPORT, digest=DIGEST, folder="/nowhere")
    ref = ModelRef(id=1, key=key, name="test", state="champion", created_at=clock.now())
    monkeypatch.setattr(registry, "champion", lambda _kind: ref)
    return DIGEST
