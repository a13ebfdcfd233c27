"""`manage.py fraud_demo`: a simulated bank with months of history and alerts, once; a second run finds it there."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from apps.accounts.api import Actor, Role
from apps.core import clock
from apps.core.errors import AppError
from apps.fraud import selectors
from apps.fraud.services import demo

_SEED = 20_260_101
_SOURCE = "bank"


class Command(BaseCommand):
    help = "Make the demo's bank: cards, history, scores, alerts; does nothing when it is there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--small", action="store_true", help="500 cards and 60 days instead of 2,000 and 90")
        parser.add_argument("--cards", type=int, help="so many cards instead")
        parser.add_argument("--days", type=int, help="so many days of history instead")
        parser.add_argument("--score", choices=("auto", "queue", "here"), default="auto")

    def handle(self, *args: Any, **options: Any) -> None:
        at = clock.now()
        if selectors.import_finished(source=_SOURCE):
            self.stdout.write("the demo bank is there already")
            return
        cards, days = (500, 60) if options["small"] else (2_000, 90)
        cards, days = options["cards"] or cards, options["days"] or days
        path = settings.VAR / "demo" / f"bank-{cards}-{days}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not path.is_file():  # kept: an interrupted run goes on with the same rows
                rows = demo.bank_file_make(path=path, cards=cards, days=days, seed=_SEED, at=at)
                self.stderr.write(f"simulated {rows:,} transactions of {cards:,} cards")
            demo.policy_set(at=at)
            call_command(
                "fraud_import", str(path), schema="bank", replay=True, score=options["score"], stdout=self.stdout
            )
            judged = demo.old_alerts_judge(analysts=_analysts(), source=_SOURCE, at=at, seed=_SEED)
        except AppError as error:
            raise CommandError(error.message) from error
        self.stdout.write(f"{judged:,} older alerts judged by the demo analysts")


def _analysts() -> list[Actor]:
    users = get_user_model().objects.filter(role=Role.ANALYST, is_active=True).order_by("pk")
    found = [Actor(user_id=user.pk, name=user.get_username(), role=user.role) for user in users]
    if not found:
        raise CommandError("there is no analyst yet; make the demo accounts first")
    return found
