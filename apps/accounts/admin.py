"""People and keys in the admin site."""

from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin

from apps.accounts.models import ApiKey, User

_OWN = ("Assay", {"fields": ("role", "time_zone", "theme")})


@admin.register(User)
class PersonAdmin(UserAdmin):
    list_display = ("username", "role", "is_active", "is_staff", "last_login")
    list_filter = ("role", "is_active", "is_staff")
    fieldsets: ClassVar[Any] = (*(UserAdmin.fieldsets or ()), _OWN)
    add_fieldsets: Any = (*UserAdmin.add_fieldsets, _OWN)


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):
    """Keys are made by their users on the profile page, where the secret is shown once; here they are revoked."""

    list_display = ("name", "user", "prefix", "created_at", "last_used_at", "revoked_at")
    list_filter = ("revoked_at",)
    search_fields = ("name", "prefix", "user__username")
    readonly_fields = ("user", "prefix", "secret_hash", "created_at", "last_used_at")

    def has_add_permission(self, request: object) -> bool:
        return False
