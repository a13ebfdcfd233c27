"""System checks: the settings of the engine are usable, said at start instead of at the first score."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

ENGINES = ("local", "fake")


@register("engine")
def engine_check(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001: ENGINE is unknown. E002: PRETRAINED_DIR is no readable folder. W001: a fake engine outside tests."""
    found: list[CheckMessage] = []
    if settings.ENGINE not in ENGINES:
        hint = "Set ENGINE to local (ml_core) or fake (tests)."
        found.append(Error(f"ENGINE is {settings.ENGINE!r}.", hint=hint, id="engine.E001"))
    elif settings.ENGINE == "local" and find_spec("ml_core") is None:
        hint = "Run from the project's root, or put it on PYTHONPATH."
        found.append(Error("ml_core cannot be found.", hint=hint, id="engine.E003"))
    elif settings.ENGINE == "fake" and getattr(settings, "ENVIRONMENT_NAME", "") != "test":
        hint = "Its scores and drafts mean nothing; set ENGINE=local."
        found.append(Warning("The fake engine answers.", hint=hint, id="engine.W001"))
    return found + _folder_check()


def _folder_check() -> list[CheckMessage]:
    folder = Path(settings.PRETRAINED_DIR)
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        hint = "The shipped students lie in ml_core/pretrained; PRETRAINED_DIR must name that folder."
        return [Error(f"PRETRAINED_DIR {folder} cannot be read: {error.strerror}.", hint=hint, id="engine.E002")]
    return []
