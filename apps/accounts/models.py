"""People and their roles, and the keys of programs that act for them."""

from django.contrib.auth.models import AbstractUser
from django.db import models

from apps.accounts.contracts import Role


class User(AbstractUser):
    """A person. Permissions come from the one role; `time_zone` is an IANA name."""

    role = models.CharField(max_length=20, choices=[(role.value, role.value.replace("_", " ")) for role in Role])
    time_zone = models.CharField(max_length=64, default="UTC")
    theme = models.CharField(
        max_length=5, default="auto", choices=[("auto", "as the system"), ("light", "light"), ("dark", "dark")]
    )

    REQUIRED_FIELDS = ["email", "role"]

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(role__in=[role.value for role in Role]), name="accounts_user_role_known"
            )
        ]


class ApiKey(models.Model):
    """A key with which a program acts as its user. Only the SHA-256 of the secret is kept."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=80, help_text="What uses this key, so that it can be found and revoked.")
    prefix = models.CharField(max_length=12, unique=True)
    secret_hash = models.CharField(max_length=64)
    created_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"
