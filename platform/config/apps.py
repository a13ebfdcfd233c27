"""Django configuration of the project itself: its management commands and its admin site."""

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig

from config import sqlite


class ConfigConfig(AppConfig):
    name = "config"

    def ready(self) -> None:
        sqlite.listen()


class AssayAdminConfig(AdminConfig):
    default_site = "config.admin.AssayAdminSite"
