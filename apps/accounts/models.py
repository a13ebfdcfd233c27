"""People and their roles."""

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

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(role__in=[role.value for role in Role]), name="accounts_user_role_known"
            )
        ]
