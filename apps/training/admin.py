"""Training runs in the admin site: to be read; starting and cancelling have their own pages."""

from django.contrib import admin
from django.http import HttpRequest

from apps.training.models import Run


@admin.register(Run)
class RunAdmin(admin.ModelAdmin):
    """Read-only."""

    list_display = ("id", "recipe", "state", "attempt", "created_at", "created_by", "digest", "error_code")
    list_filter = ("kind", "state")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Run | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Run | None = None) -> bool:
        return False
