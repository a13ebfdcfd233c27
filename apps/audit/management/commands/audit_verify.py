"""manage.py audit_verify: checks the whole hash chain and names the first broken link."""

import json
from argparse import ArgumentParser
from dataclasses import asdict

from django.core.management.base import BaseCommand

from apps.accounts.api import system_actor
from apps.audit import services
from apps.core import clock


class Command(BaseCommand):
    """The exit status is 1 when a link is broken."""

    help = "Verify the audit trail's hash chain."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    def handle(self, *args: object, **options: bool) -> None:
        report = services.trail_verify(by=system_actor(name="audit_verify"), at=clock.now())
        if options["json"]:
            self.stdout.write(json.dumps(asdict(report) | {"whole": report.whole}))
        elif report.whole:
            self.stdout.write(f"{report.checked} events, every link holds")
        else:
            self.stdout.write(f"broken at event {report.broken_at}: {report.reason}")
        if not report.whole:
            raise SystemExit(1)
