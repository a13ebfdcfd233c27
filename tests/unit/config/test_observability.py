"""Logs never show the local variables of a traceback: they hold card numbers and names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
_CODE = """
import logging
import django
django.setup()
def fail(card):
    raise ValueError("no")
try:
    fail("4539" + "1234" + "5678" + "1187")
except ValueError:
    logging.getLogger("apps.fraud").exception("failed")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_keeps_the_line_and_drops_the_values(tmp_path, form):
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
        "DJANGO_SETTINGS_MODULE": "config.settings.demo",
        "ASSAY_HOME": str(tmp_path),
        "LOG_FORMAT": form,
    }
    done = subprocess.run([sys.executable, "-c", _CODE], env=env, capture_output=True, text=True, check=True)
    assert "ValueError" in done.stderr
    assert "4539123456781187" not in done.stderr
