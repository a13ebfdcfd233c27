"""A registry with real artifacts."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def store(settings: object, tmp_path: Path) -> Path:
    """Private storage under tmp_path; the folder for artifacts to be made in comes back."""
    settings.MEDIA_ROOT = tmp_path / "private"
    return tmp_path / "made"
