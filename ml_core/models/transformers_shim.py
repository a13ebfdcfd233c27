"""Importing transformers where torchvision's compiled extension cannot load: its operators are declared first."""

import importlib
import os
from types import ModuleType

from ml_core.models.timm_shim import timm_import


def transformers_import() -> ModuleType:
    """Import transformers, offline: it imports torchvision on its way, so timm's remedy comes first."""
    timm_import()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return importlib.import_module("transformers")
