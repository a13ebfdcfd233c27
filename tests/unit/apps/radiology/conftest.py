"""What the tests of radiology share: private storage of their own, people, a champion for the fake engine, batches."""

from collections.abc import Callable
from pathlib import Path

import pytest
from django.test import Client
from testkit import dicom_files
from testkit.people import make_user

from apps.accounts.contracts import Actor, Role
from apps.accounts.models import User
from apps.core import clock
from apps.engine.port import get_engine
from apps.radiology import tasks  # noqa: F401  registers the tasks, so that eager mode finds them
from apps.radiology.contracts import BatchResult
from apps.radiology.models import Study
from apps.radiology.services import importing

ME = Actor(user_id=None, name="test", role="system")


@pytest.fixture(autouse=True)
def private_storage(settings: object, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "private"  # type: ignore[attr-defined]


@pytest.fixture
def radiologist(db: None) -> User:
    user = make_user(Role.RADIOLOGIST)
    user.set_password("right-horse-battery")
    user.save()
    return user


@pytest.fixture
def signed_in(radiologist: User) -> Client:
    client = Client()
    client.force_login(radiologist)
    return client


@pytest.fixture
def champion(monkeypatch: pytest.MonkeyPatch) -> str:
    """A champion report model for the fake engine; its digest."""
    from testkit.radiology import fake_champion

    get_engine.cache_clear()
    return fake_champion(monkeypatch)


@pytest.fixture
def take_in(db: None, tmp_path: Path) -> Callable[..., BatchResult]:
    """Import files given as {name: bytes}."""

    def run(files: dict[str, bytes], *, draft: importing.DraftMode = "none") -> BatchResult:
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return importing.path_import(
            path=folder, draft=draft, by=ME, now=clock.now, progress=lambda _done, _known: None
        )

    return run


@pytest.fixture
def study(take_in: Callable[..., BatchResult]) -> Study:
    """One stored study of one image."""
    take_in({"good.dcm": dicom_files.good()})
    return Study.objects.get()
