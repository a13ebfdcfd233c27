"""`manage.py fraud_import FILE`: stores, and scores, the transactions of a CSV or parquet file."""

import json
import time
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from celery import current_app
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from apps.accounts.api import system_actor
from apps.core import clock
from apps.core.errors import AppError
from apps.fraud import selectors
from apps.fraud.contracts import ImportReport
from apps.fraud.services import files, imports, scoring
from apps.fraud.services.schemas import Schema, schema_load
from ml_core.errors import EngineError

_POLL_S = 0.25
_STALL_S = 180


class Command(BaseCommand):
    help = "Store and score the transactions of a CSV or parquet file; bad rows are named, good ones kept."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--schema", default="handbook", help="handbook, alteryx, bank, or the path of a JSON file")
        parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
        parser.add_argument(
            "--score",
            choices=("auto", "queue", "here", "none"),
            default="auto",
            help="auto: by a worker of the gpu lane if one answers, else in this process",
        )
        parser.add_argument("--replay", action="store_true", help="open alerts at the moment of their transactions")
        parser.add_argument("--limit", type=int, default=None, help="read this many rows at most")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["file"]
        if not path.is_file():
            raise CommandError(f"there is no file {path}")
        console = Console(stderr=True)
        try:
            schema = schema_load(options["schema"])
            where = _where(options["score"], console)
            report = _run(path, schema=schema, where=where, console=console, options=options)
        except files.FileError as error:
            self._refused(path, error, as_json=options["json"])
            return
        except (AppError, EngineError) as error:
            raise CommandError(str(error)) from error
        self._print(report, where=where, as_json=options["json"])

    def _refused(self, path: Path, error: AppError, *, as_json: bool) -> None:
        if as_json:
            entry = {"file": path.name, "status": "refused", "reason": error.message}
            self.stdout.write(json.dumps({"stored": 0, "files": [entry], "rows": []}))
        else:
            self.stdout.write(f"refused: {error.message}")

    def _print(self, report: ImportReport, *, where: str, as_json: bool) -> None:
        if as_json:
            body = asdict(report)
            bad = body.pop("bad")
            body["read"] = body.pop("rows")
            body["scored_by"] = where
            body["rows_per_second"] = round(report.rows / max(report.seconds, 1e-9))
            body["seconds"] = round(report.seconds, 3)
            body["rows_listed"], body["rows_capped"] = len(bad), len(bad) < report.refused
            body["rows"] = [{"file": report.file, "status": "refused", **row} for row in bad]
            self.stdout.write(json.dumps(body))
            return
        self.stdout.write(
            f"{report.rows:,} rows: {report.stored:,} stored, {report.duplicates:,} there already, "
            f"{report.refused:,} refused; {report.scored:,} scored, {report.alerts:,} alerts; "
            f"{report.seconds:.1f} s, {report.rows / max(report.seconds, 1e-9):,.0f} rows/s"
        )
        for row in report.bad[:20]:
            self.stdout.write(f"  line {row.line}: {row.reason}")
        if report.refused > 20:
            self.stdout.write(f"  … and {report.refused - 20:,} more; --json lists {imports.KEPT_BAD_ROWS:,}")


def _where(asked: str, console: Console) -> str:
    """Where scores are computed: queue, here or none; says so when `auto` decides for this process."""
    if asked != "auto":
        return asked
    lanes = _lanes_answering()
    if "gpu" in lanes:
        return "queue"
    console.print("no worker of the gpu lane answers: scoring in this process")
    return "here"


def _lanes_answering() -> set[str]:
    try:
        queues = current_app.control.inspect(timeout=1.0).active_queues() or {}
    except OSError:  # kombu's OperationalError and redis' ConnectionError are OSErrors or carry one
        return set()
    except current_app.connection_for_read().connection_errors:
        return set()
    return {queue["name"] for found in queues.values() for queue in found}


def _run(path: Path, *, schema: Schema, where: str, console: Console, options: dict[str, Any]) -> ImportReport:
    started = time.monotonic()
    total = files.rows_count(path)
    if options["limit"] is not None:
        total = min(total, options["limit"]) if total else options["limit"]
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        bar = progress.add_task("read", total=total, rate="")

        def on_progress(rows: int) -> None:
            done = progress.tasks[0].completed + rows
            progress.update(bar, advance=rows, rate=f"{done / (time.monotonic() - started):,.0f} rows/s")

        report = imports.file_import(
            path,
            schema=schema,
            by=system_actor(name="fraud_import"),
            at=clock.now(),
            score=where != "none",
            replay=options["replay"],
            limit=options["limit"],
            on_batch=_score_here if where == "here" else None,
            on_progress=on_progress,
        )
        if where == "here":  # what an interrupted run left behind
            for batch_id, attempt in selectors.batches_waiting(source=schema.source):
                scoring.batch_score_next(batch_id=batch_id, attempt=attempt, at=clock.now())
        if where == "queue" and report.stored:
            _wait(report, progress=progress)
    return imports.import_report(import_id=report.import_id, bad=report.bad, seconds=time.monotonic() - started)


def _score_here(batch_id: int) -> None:
    scoring.batch_score_next(batch_id=batch_id, attempt=1, at=clock.now())


def _wait(report: ImportReport, *, progress: Progress) -> None:
    """Watch the workers until every batch is done, or nothing has moved for minutes."""
    bar = progress.add_task("scored", total=report.stored, rate="")
    moved, before = time.monotonic(), -1
    while time.monotonic() - moved < _STALL_S:
        done, waiting = selectors.batch_rows(import_id=report.import_id)
        progress.update(bar, completed=done)
        if not waiting:
            return
        if done != before:
            moved, before = time.monotonic(), done
        time.sleep(_POLL_S)
    progress.console.print(f"no batch was scored for {_STALL_S} s; {waiting:,} rows stay in the queue")
