"""LocalEngine: a few models by digest, the least recently used going first, and never the wrong one."""

import pytest
from testkit.artifacts import artifact_make

from ml_core import engine as module
from ml_core.contracts import ModelKey, ModelKind
from ml_core.engine import LocalEngine
from ml_core.errors import ArtifactError


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Three verified artifacts; what is loaded from them is only their digest, so that no weights are needed."""
    made = []
    for number in range(3):
        folder = tmp_path / str(number)
        digest = artifact_make(folder, weights=bytes([number]))
        made.append(ModelKey(kind=ModelKind.FRAUD, digest=digest, folder=str(folder)))
    monkeypatch.setattr(module, "_load", lambda model, tables: object())
    return made


def test_the_least_recently_used_model_goes_first(keys):
    engine = LocalEngine(capacity=2)
    for key in (keys[0], keys[1], keys[0], keys[2]):
        engine.load(key)
    assert engine.loaded() == (keys[0].digest, keys[2].digest)


def test_a_model_is_loaded_once(keys, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "_load", lambda model, tables: calls.append(model) or object())
    engine = LocalEngine()
    engine.load(keys[0])
    engine.load(keys[0])
    assert calls == [keys[0]]


def test_a_kind_that_the_folder_does_not_hold_is_refused(tmp_path):
    digest = artifact_make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="not a report model"):
        LocalEngine().load(ModelKey(kind=ModelKind.REPORT, digest=digest, folder=str(tmp_path / "a")))


def test_a_cache_for_nothing_is_refused():
    with pytest.raises(ValueError, match="capacity"):
        LocalEngine(capacity=0)
