"""Every setting of ours is read by somebody, production refuses to start half configured, models have migrations."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import global_settings
from django.core.management import call_command

ROOT = Path(__file__).resolve().parents[2]
_SETTINGS = ROOT / "platform" / "config" / "settings"
_OF_LIBRARIES = re.compile(r"^(CELERY_|AXES_|WHITENOISE_|CONTENT_SECURITY_POLICY|NINJA_|ROOT_URLCONF)")
_ASSIGNED = re.compile(r"^([A-Z][A-Z0-9_]+)\s*(?::[^=]+)?=", re.MULTILINE)


def test_no_setting_is_read_by_nobody():
    names = {name for path in _SETTINGS.glob("*.py") for name in _ASSIGNED.findall(path.read_text())}
    own = {name for name in names if not hasattr(global_settings, name) and not _OF_LIBRARIES.match(name)}
    code = "\n".join(
        path.read_text()
        for folder in ("apps", "platform/config")
        for path in (ROOT / folder).rglob("*.py")
        if "migrations" not in path.parts
    )
    unread = {name for name in own if len(re.findall(rf"\b{name}\b", code)) < 2}
    assert unread == set()


def _import_prod(tmp_path, **env):
    clean = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    path = f"{ROOT}{os.pathsep}{ROOT / 'platform'}"
    return subprocess.run(
        [sys.executable, "-c", "import config.settings.prod"],
        env=clean | {"PYTHONPATH": path, "ASSAY_HOME": str(tmp_path)} | env,
        capture_output=True,
        text=True,
        check=False,
    )


_FULL = {
    "SECRET_KEY": "x" * 60,
    "TOKEN_KEY": "y" * 60,
    "ALLOWED_HOSTS": "assay.example",
    "DATABASE_URL": "postgres://db/assay",
    "REDIS_URL": "redis://redis/0",
}


@pytest.mark.parametrize("missing", sorted(_FULL))
def test_production_names_the_variable_that_is_missing(tmp_path, missing):
    done = _import_prod(tmp_path, **{name: value for name, value in _FULL.items() if name != missing})
    assert done.returncode != 0
    assert f"{missing} must be set" in done.stderr


def test_production_starts_when_everything_is_set(tmp_path):
    done = _import_prod(tmp_path, **_FULL)
    assert done.returncode == 0, done.stderr


@pytest.mark.django_db
def test_every_change_of_a_model_has_its_migration():
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)
