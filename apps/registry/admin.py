"""The registry in the admin site: to be read; promotion goes through its own page, which keeps the history."""

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from apps.registry.models import ModelVersion, Promotion


class ReadOnlyAdmin(admin.ModelAdmin):
    """No adding, changing or deleting by hand."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnlyAdmin):
    """Versions."""

    list_display = ("name", "kind", "state", "digest", "created_at", "created_by")
    list_filter = ("kind", "state")


@admin.register(Promotion)
class PromotionAdmin(ReadOnlyAdmin):
    """Who served when."""

    list_display = ("kind", "model", "served_from", "served_to", "by", "note")
    list_filter = ("kind",)
