"""manage.py registry_sync: takes the shipped models in and promotes the first of each kind that has no champion."""

import json
from argparse import ArgumentParser
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand

from apps.accounts.api import system_actor
from apps.core import clock
from apps.registry import services


class Command(BaseCommand):
    """Idempotent; models that the engine refuses are named and make the exit status 1."""

    help = "Register every model under PRETRAINED_DIR; promote the first of each kind that has no champion."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dir", default=str(settings.PRETRAINED_DIR), help="folder with one artifact a subfolder")
        parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    def handle(self, *args: object, **options: str) -> None:
        actor = system_actor(name="registry_sync")
        report = services.shipped_sync(root=Path(options["dir"]), by=actor, at=clock.now())
        for folder, reason in report.refused:
            self.stderr.write(f"{folder}: {reason}")
        if options["json"]:
            self.stdout.write(
                json.dumps(
                    {
                        "registered": list(report.registered),
                        "known": list(report.known),
                        "promoted": list(report.promoted),
                        "refused": [{"folder": folder, "reason": reason} for folder, reason in report.refused],
                    }
                )
            )
        else:
            self.stdout.write(
                f"{len(report.registered)} registered, {len(report.known)} known, "
                f"{len(report.promoted)} promoted, {len(report.refused)} refused"
            )
        if report.refused:
            raise SystemExit(1)
