"""Django configuration of the engine app."""

from django.apps import AppConfig


class EngineConfig(AppConfig):
    """The port to ml_core and its checks."""

    name = "apps.engine"
    label = "engine"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        from apps.engine import checks  # noqa: F401 - importing registers
