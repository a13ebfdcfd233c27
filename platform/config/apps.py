"""Django configuration of the project itself: its management commands and its admin site."""

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class ConfigConfig(AppConfig):
    name = "config"


class AssayAdminConfig(AdminConfig):
    default_site = "config.admin.AssayAdminSite"
