"""The engines' packages: what is installed here, without importing it, and importing the one that was chosen."""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from ml_core.errors import EngineMissing

ABSENT = "absent"


def versions() -> dict[str, str]:
    """Of torch and the two optional engines; "absent" where one is not installed."""
    return {package: _version(package) for package in ("torch", "onnxruntime", "openvino")}


def installed(package: str) -> ModuleType:
    """The engine's module, imported now. Raises EngineMissing, with the command that installs it."""
    if package == "openvino":
        # importing openvino sends an event to its makers; without this package it takes a stub that sends nothing
        sys.modules.setdefault("openvino_telemetry", None)
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise EngineMissing(
            f"{package} is not installed here: pip install -c constraints.txt -r ml_core/requirements-engines.txt"
        ) from None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT
