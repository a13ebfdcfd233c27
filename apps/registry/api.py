"""What other apps may ask of the registry."""

from apps.registry.contracts import ModelRef
from apps.registry.rules import Comparison, compare
from apps.registry.selectors import (
    ModelNotFoundError,
    NoChampionError,
    champion,
    model_get,
    model_list,
    served_at,
)
from apps.registry.services import ArtifactRefusedError, model_promote, model_register

__all__ = [
    "ArtifactRefusedError",
    "Comparison",
    "ModelNotFoundError",
    "ModelRef",
    "NoChampionError",
    "champion",
    "compare",
    "model_get",
    "model_list",
    "model_promote",
    "model_register",
    "served_at",
]
