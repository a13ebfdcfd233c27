"""Django configuration of the fraud app."""

from django.apps import AppConfig


class FraudConfig(AppConfig):
    name = "apps.fraud"
    label = "fraud"
    default_auto_field = "django.db.models.BigAutoField"
