"""Fraud in the admin site: to be read; people judge alerts on their own page, which keeps the history."""

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from apps.fraud.models import Alert, AlertPolicy, Disposition, Import, ScoreBatch, Terminal


class ReadOnlyAdmin(admin.ModelAdmin):
    """No adding, changing or deleting by hand; no count of millions of rows on every page."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Import)
class ImportAdmin(ReadOnlyAdmin):
    list_display = ("file_name", "schema", "state", "rows", "stored", "duplicates", "refused", "started_at", "by_name")


@admin.register(ScoreBatch)
class ScoreBatchAdmin(ReadOnlyAdmin):
    list_display = ("id", "imported", "rows", "state", "attempt", "alerts", "error_code", "finished_at")
    list_select_related = ("imported",)
    list_filter = ("state",)


@admin.register(Alert)
class AlertAdmin(ReadOnlyAdmin):
    list_display = ("id", "card", "terminal", "amount_cents", "currency", "band", "state", "verdict", "opened_at")
    list_select_related = ("card", "terminal")
    list_filter = ("state", "band", "verdict")
    raw_id_fields = ("transaction", "card", "terminal", "claimed_by")


@admin.register(Disposition)
class DispositionAdmin(ReadOnlyAdmin):
    list_display = ("id", "alert", "verdict", "reason_code", "by", "at", "undone_at", "learned_at")
    list_select_related = ("alert", "by")
    list_filter = ("verdict",)


@admin.register(AlertPolicy)
class AlertPolicyAdmin(ReadOnlyAdmin):
    list_display = ("threshold", "age_cap_h", "at", "by_name")


@admin.register(Terminal)
class TerminalAdmin(ReadOnlyAdmin):
    list_display = ("name", "category", "key")
    search_fields = ("name", "key")
