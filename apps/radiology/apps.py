"""Django configuration of the radiology app."""

from django.apps import AppConfig


class RadiologyConfig(AppConfig):
    name = "apps.radiology"
    label = "radiology"
    default_auto_field = "django.db.models.BigAutoField"
