"""Importing timm where torchvision's compiled extension cannot load: its operators are declared first."""

import importlib
import sys
from types import ModuleType

import torch

# torchvision registers fake kernels for these at import; where its extension does not load (a torch build that the
# extension was not compiled for) the operators do not exist and the import dies. Declaring the schema is enough:
# nothing here calls them.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None


def timm_import() -> ModuleType:
    """Import timm, declaring torchvision's operators first if torchvision would not import without."""
    if "timm" in sys.modules:
        return sys.modules["timm"]
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare()
    return importlib.import_module("timm")


def _declare() -> None:
    global _library
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")  # noqa: TOR901 - kept for the life of the process
    for schema in _SCHEMAS.values():
        _library.define(schema)
    importlib.import_module("torchvision")
