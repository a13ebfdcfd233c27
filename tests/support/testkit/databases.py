"""Whole databases for a test: a SQLite file or a new PostgreSQL database, migrated by the real command."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testkit.services import postgres_url
from testkit.shared import ROOT

VENDORS = ("sqlite", "postgresql")


@contextmanager
def database(vendor: str, *, folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which manage.py uses a fresh, migrated database of this vendor; dropped at the end."""
    env = os.environ | {"ASSAY_HOME": str(folder), "ENGINE": "fake", "DJANGO_SETTINGS_MODULE": "config.settings.dev"}
    env.pop("DATABASE_URL", None)
    if vendor == "sqlite":
        manage(env, "migrate", "--verbosity=0")
        yield env
        return
    server = postgres_url()
    if server is None:
        pytest.skip("no PostgreSQL answers")
    import psycopg

    base, name = server.rsplit("/", 1)[0], f"assay_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{base}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        try:
            env["DATABASE_URL"] = f"{base}/{name}"
            manage(env, "migrate", "--verbosity=0")
            yield env
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def manage(env: dict[str, str], *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """manage.py in a process of its own."""
    return subprocess.run(
        [sys.executable, "manage.py", *words], cwd=ROOT, env=env, check=check, text=True, capture_output=True
    )


def script_start(env: dict[str, str], code: str) -> subprocess.Popen[str]:
    """A process that sets Django up and runs this code."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import django; django.setup()\n{code}"],
        cwd=ROOT,
        env=env | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
