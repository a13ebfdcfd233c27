"""A registry with real artifacts and an engine that reads their manifests."""

from pathlib import Path

import pytest
from testkit.artifacts import ManifestEngine


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, settings: object, tmp_path: Path) -> Path:
    """Private storage under tmp_path; the folder for artifacts to be made in comes back."""
    monkeypatch.setattr("apps.registry.services.get_engine", ManifestEngine)
    settings.MEDIA_ROOT = tmp_path / "private"
    return tmp_path / "made"
