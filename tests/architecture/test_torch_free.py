"""The web process never pays for torch: Django, all URLs, the ASGI application and every tasks module without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CODE = """
import importlib, json, sys
import django
django.setup()
from django.apps import apps
import config.urls, config.asgi, config.tasks
for app in apps.get_app_configs():
    if app.name.startswith("apps.") and importlib.util.find_spec(app.name + ".tasks"):
        importlib.import_module(app.name + ".tasks")
from django.urls import get_resolver
get_resolver().url_patterns
names = ("torch", "triton", "transformers", "timm", "onnx", "onnxruntime", "openvino", "ml_core.engine")
heavy = [name for name in names if name in sys.modules]
print(json.dumps(heavy))
"""


def test_nothing_of_the_platform_imports_torch(tmp_path):
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
        "DJANGO_SETTINGS_MODULE": "config.settings.demo",
        "ASSAY_HOME": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", _CODE], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_importing_ml_core_alone_costs_nothing():
    code = (
        "import sys, ml_core.contracts, ml_core.errors, ml_core.serving.engines.table, ml_core.serving.engines.build; "
        "print([m for m in ('torch', 'numpy', 'onnx', 'onnxruntime', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
