"""Imports DICOM files from a folder, a file or a zip: `manage.py radiology_import PATH [--json] [--draft MODE]`."""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import Progress

from apps.accounts.api import system_actor
from apps.core import clock
from apps.radiology.services.importing import ImportPathError, path_import


class Command(BaseCommand):
    """Every file gets one entry with its status and reason; the exit status is 0 when the batch was handled."""

    help = "Import DICOM files from a folder, a file or a zip."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("path", type=Path)
        parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        parser.add_argument(
            "--draft",
            choices=["auto", "queue", "here", "none"],
            default="auto",
            help="who drafts: the gpu lane (queue), this process (here), nobody (none); auto: the lane if it answers",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("reading files", total=None)
            try:
                result = path_import(
                    path=options["path"],
                    draft=options["draft"],
                    by=system_actor(name="radiology_import"),
                    now=clock.now,
                    progress=lambda done, known: bar.update(task, completed=done, total=known),
                )
            except ImportPathError as error:
                raise CommandError(error.message) from error
        if options["json"]:
            report = {
                "batch": result.batch_id, "counts": result.counts, "files": [one.row for one in result.files],
                "studies": result.studies, "images": result.images, "drafts": result.drafts,
                "seconds": result.seconds,
            }  # fmt: skip
            self.stdout.write(json.dumps(report))
            return
        for one in result.files:
            if one.status != "stored":
                self.stdout.write(f"{one.status:16} {one.file}: {one.reason}")
        counts = ", ".join(f"{count} {name}" for name, count in result.counts.items() if count)
        self.stdout.write(f"{counts or 'no files'}; {result.studies} studies; drafts: {result.drafts}")
