"""The audit trail in the admin site: to be read, never to be changed."""

from django.contrib import admin
from django.http import HttpRequest

from apps.audit.models import Event


@admin.register(Event)
class EventAdmin(admin.ModelAdmin):
    """Read-only; the database would refuse a change anyway."""

    list_display = ("sequence", "at", "sentence", "role", "origin", "allowed")
    list_filter = ("verb", "role", "allowed")
    search_fields = ("name", "object_id")
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Event | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Event | None = None) -> bool:
        return False
