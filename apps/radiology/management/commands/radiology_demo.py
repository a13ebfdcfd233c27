"""Loads demo studies with priors from the simulator: `manage.py radiology_demo`; run twice, it does nothing."""

import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import Progress

from apps.accounts.api import system_actor
from apps.core import clock
from apps.radiology.services.demo import demo_finish, demo_is_loaded
from apps.radiology.services.importing import path_import


class Command(BaseCommand):
    """Simulated thoraxes, written as DICOM by the engine's phantom in a child, then taken in like any upload."""

    help = "Load demo studies from the simulator."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--patients", type=int, default=40)
        parser.add_argument("--seed", type=int, default=20)
        parser.add_argument("--draft", choices=["auto", "queue", "here", "none"], default="auto")

    def handle(self, *args: Any, **options: Any) -> None:
        if demo_is_loaded():
            self.stdout.write("demo studies are there already")
            return
        folder = Path(tempfile.mkdtemp(prefix="assay-phantom-"))
        try:
            self._simulate(folder, patients=options["patients"], seed=options["seed"])
            with Progress(console=Console(stderr=True)) as bar:
                task = bar.add_task("reading demo studies", total=None)
                result = path_import(
                    path=folder,
                    draft=options["draft"],
                    by=system_actor(name="radiology_demo"),
                    now=clock.now,
                    progress=lambda done, known: bar.update(task, completed=done, total=known),
                    source="demo",
                )
            demo_finish(batch_id=result.batch_id, at=clock.now())
        finally:
            shutil.rmtree(folder)
        self.stdout.write(f"{result.images} images in {result.studies} studies; drafts: {result.drafts}")

    def _simulate(self, folder: Path, *, patients: int, seed: int) -> None:
        """Run the phantom as a child, so that torch never enters this process."""
        command = [sys.executable, "-m", "ml_core.data.phantom", "--out", str(folder), "--patients", str(patients)]
        done = subprocess.run([*command, "--seed", str(seed)], cwd=Path(__file__).resolve().parents[4], check=False)
        if done.returncode or not any(folder.rglob("*.dcm")):
            raise CommandError(f"the simulator wrote no studies (exit status {done.returncode})")
