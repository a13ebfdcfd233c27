"""Runs one training folder: spec.json in, events.jsonl, checkpoints/ and artifact/ out."""

import json
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import FrameType

from ml_core.config import from_mapping, to_mapping
from ml_core.contracts import RunSpec
from ml_core.errors import EngineError, RunError
from ml_core.events import EventLog
from ml_core.train.outcome import RunOutcome

SPEC = "spec.json"
CANCELLED = 143  # what a shell says of a process ended by SIGTERM
FAILED = 1
Run = Callable[[RunSpec, Path, EventLog], RunOutcome | None]


class RunCancelled(BaseException):
    """SIGTERM came: past every `except Exception` of a recipe, so that nothing swallows it."""


def run_folder(folder: Path | str, *, defaults: Callable[[str], RunSpec], run: Run | None = None) -> int:
    """Run FOLDER/spec.json to its end; returns the exit status: 0 done, 1 failed, 143 cancelled by SIGTERM.

    The spec's params and inputs go over those of its recipe (`defaults`). The run is ml_core.train.<kind>.run unless
    `run` is given; it returns a RunOutcome, or writes `done` itself. Whatever happens, the last word in events.jsonl
    is done or failed. Must be called in the main thread, since it handles SIGTERM.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, _cancel)
    try:
        with EventLog(root) as log:
            return _guarded(root, log=log, defaults=defaults, run=run)
    finally:
        signal.signal(signal.SIGTERM, before)


def spec_read(folder: Path | str) -> RunSpec:
    """FOLDER/spec.json, strictly. Raises RunError or InputError."""
    path = Path(folder) / SPEC
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from None
    return from_mapping(RunSpec, body, where="spec")


def spec_write(folder: Path | str, *, spec: RunSpec) -> Path:
    """Write FOLDER/spec.json; returns its path."""
    path = Path(folder) / SPEC
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_mapping(spec), indent=1))
    return path


def spec_complete(spec: RunSpec, *, base: RunSpec) -> RunSpec:
    """`spec` with what it leaves open taken from its recipe. Raises RunError when the kinds differ."""
    if spec.kind is not base.kind:
        raise RunError(f"spec: recipe {spec.recipe!r} is for {base.kind}, not for {spec.kind}")
    return replace(spec, params={**base.params, **spec.params}, inputs={**base.inputs, **spec.inputs})


def _guarded(root: Path, *, log: EventLog, defaults: Callable[[str], RunSpec], run: Run | None) -> int:
    try:
        spec = spec_read(root)
        spec = spec_complete(spec, base=defaults(spec.recipe))
        log.log(f"{spec.kind} run of recipe {spec.recipe}, seed {spec.seed}")
        _seed(spec.seed)
        outcome = (run or _run_of(spec))(spec, root, log)
        _close(outcome, log=log)
    except RunCancelled:
        log.failed("cancelled")
        return CANCELLED
    except EngineError as error:
        log.failed(str(error))
        print(f"{error.code}: {error}", file=sys.stderr)
        return FAILED
    except Exception as error:  # noqa: BLE001 - a bug must end as an event too, or the run would only look lost
        log.failed(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return FAILED
    return 0


def _close(outcome: RunOutcome | None, *, log: EventLog) -> None:
    if outcome is not None:
        log.done(
            digest=outcome.digest, artifact=outcome.artifact, candidate=outcome.candidate, champion=outcome.champion
        )
    elif not log.finished:
        raise RunError("the run ended without a result")


def _seed(seed: int) -> None:
    from ml_core.seed import seed_all

    seed_all(seed)


def _run_of(spec: RunSpec) -> Run:
    return import_module(f"ml_core.train.{spec.kind.value}").run


def _cancel(number: int, frame: FrameType | None) -> None:
    raise RunCancelled


def summary(folder: Path | str) -> Mapping[str, object]:
    """The last word of a run: its done or failed event."""
    from ml_core.events import EVENTS, read

    events, _ = read(Path(folder) / EVENTS)
    return next((event for event in reversed(events) if event["kind"] in {"done", "failed"}), {})
