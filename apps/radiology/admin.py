"""Radiology in the admin site, read-only: everything changes through services, which leave an audit event."""

from django.contrib import admin
from django.http import HttpRequest

from apps.radiology.models import Batch, Draft, Instance, Report, ReportSignature, Study, UploadedFile


class ReadOnlyAdmin(admin.ModelAdmin):
    """Nobody adds, changes or deletes here."""

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


@admin.register(Batch)
class BatchAdmin(ReadOnlyAdmin):
    list_display = ("name", "source", "priority", "created_by", "created_at")


@admin.register(UploadedFile)
class UploadedFileAdmin(ReadOnlyAdmin):
    list_display = ("name", "batch", "status", "reason", "size_bytes", "finished_at")
    list_filter = ("status", "state")


@admin.register(Study)
class StudyAdmin(ReadOnlyAdmin):
    list_display = ("uid", "patient", "modality", "priority", "ai_flag", "arrived_at")
    list_filter = ("priority", "modality")
    search_fields = ("uid", "patient__pseudonym")


@admin.register(Instance)
class InstanceAdmin(ReadOnlyAdmin):
    list_display = ("sop_uid", "modality", "transfer_syntax_name", "displayable", "reason", "size_bytes")
    list_filter = ("displayable", "modality")
    search_fields = ("sop_uid",)


@admin.register(Draft)
class DraftAdmin(ReadOnlyAdmin):
    list_display = ("study", "number", "state", "attempt", "declined", "model_digest", "seconds", "queued_at")
    list_filter = ("state", "declined")


@admin.register(Report)
class ReportAdmin(ReadOnlyAdmin):
    list_display = ("study", "state", "version", "updated_by", "updated_at")
    list_filter = ("state",)


@admin.register(ReportSignature)
class ReportSignatureAdmin(ReadOnlyAdmin):
    list_display = ("report", "signer_name", "signed_at", "digest")
