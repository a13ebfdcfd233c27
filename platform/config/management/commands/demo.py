"""Starts the whole of Assay on this machine with demo data, and stops it on Ctrl-C."""

import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from config.demo.run import demo_run
from config.env import env_bool, env_int, env_str


class Command(BaseCommand):
    help = __doc__
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        if not hasattr(settings, "DEMO_PASSWORD"):
            raise CommandError("The demo runs with config.settings.demo alone.")
        status = demo_run(
            port=env_int("PORT", 8000),
            broker_url=env_str("REDIS_URL", "") or None,
            exit_when_ready=env_bool("DEMO_EXIT", False),
            out=sys.stdout,
        )
        sys.exit(status)
