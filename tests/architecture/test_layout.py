"""The folder platform/ never shadows the standard library's module, and nothing invites it to."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def child(code: str) -> str:
    """Run `code` in a fresh interpreter at the root, on the path that manage.py, pytest, make and the images set."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_platform_is_the_standard_module():
    system, path = child("import platform; print(platform.system()); print(platform.__file__)").splitlines()
    assert system == os.uname().sysname
    assert str(ROOT) not in path


@pytest.mark.parametrize("package", ["uuid", "pytest", "celery", "django"])
def test_packages_that_import_platform_still_do(package):
    child(f"import {package}, platform; platform.machine()")


def test_platform_holds_folders_only():
    inside = {path.name for path in (ROOT / "platform").iterdir() if path.name != "__pycache__"}
    assert inside == {"config", "static", "templates", "requirements.txt"}


def test_there_is_no_init_where_it_would_break_imports():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    bad = [
        name
        for name in tracked
        if name == "platform/__init__.py"
        or name.startswith("docker/")
        and name.endswith("__init__.py")
        or name.startswith("tests/")
        and name.endswith("__init__.py")
        and "testkit" not in name
        or name.startswith("tests/unit/platform/")
        or name.endswith("/triton.py")
        or name.endswith("/celery.py")
        and not name.startswith("platform/config/")
    ]
    assert bad == []


def test_triton_is_imported_in_the_files_of_kernels_alone():
    importing = subprocess.run(
        ["git", "grep", "-lE", r"^\s*(import|from) triton", "--", "ml_core", "apps", "platform"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "ml_core/kernels/dpe_attention/kernel.py" in importing
    # docs/adr/0009: one more file where a backward pass has kernels of its own
    allowed = re.compile(r"ml_core/kernels/\w+/(backward_)?kernel\.py")
    assert [name for name in importing if not allowed.fullmatch(name)] == []


def test_product_code_does_not_know_the_development_data():
    code = subprocess.run(
        ["git", "grep", "-nE", r"ASSAY_SHARED|\.\./shared|/work/shared", "--", "platform", "apps", "ml_core"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert code.stdout == ""
