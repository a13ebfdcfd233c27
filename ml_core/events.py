"""events.jsonl of a training run: one JSON object a line, flushed at once, with a heartbeat from a thread."""

import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ml_core.contracts import RunEventKind

EVENTS = "events.jsonl"
HEARTBEAT_S = 4.0


class EventLog:
    """Writer of FOLDER/events.jsonl (appends). As a context manager it also beats every `heartbeat_s` seconds.

    `finished` is True once done or failed is written. Safe to call from several threads. Numbers that are not finite
    are written as null, since JSON has no NaN.
    """

    def __init__(self, folder: Path | str, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.path = Path(folder) / EVENTS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._heartbeat_s = heartbeat_s
        self._thread: threading.Thread | None = None
        self.finished = False

    def __enter__(self) -> Self:
        self.heartbeat()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stage(self, name: str, *, index: int, of: int) -> None:
        """The run enters stage `index` (from 1) of `of`."""
        self._write(RunEventKind.STAGE, name=name, index=index, of=of)

    def step(
        self,
        step: int,
        *,
        steps: int,
        epoch: int,
        epochs: int,
        loss: float,
        alpha: float = 0.0,
        lr: float = 0.0,
        align: Mapping[str, float] | None = None,
    ) -> None:
        """Optimiser step `step` of `steps` is done; `align` has the alignment loss by level (token, layer, global)."""
        self._write(
            RunEventKind.STEP,
            step=step,
            steps=steps,
            epoch=epoch,
            epochs=epochs,
            loss=loss,
            alpha=alpha,
            lr=lr,
            align=dict(align or {}),
        )

    def eval(self, split: str, *, metrics: Mapping[str, float]) -> None:
        """Metrics measured on `split`."""
        self._write(RunEventKind.EVAL, split=split, metrics=dict(metrics))

    def log(self, text: str) -> None:
        """A line for the person who watches."""
        self._write(RunEventKind.LOG, text=text)

    def heartbeat(self) -> None:
        """Still alive."""
        self._write(RunEventKind.HEARTBEAT)

    def done(
        self,
        *,
        digest: str,
        artifact: Path | str,
        candidate: Mapping[str, float],
        champion: Mapping[str, float] | None = None,
    ) -> None:
        """The run succeeded: the artifact's digest and folder, and its metrics beside the champion's on equal data."""
        metrics = {"candidate": dict(candidate), "champion": dict(champion) if champion is not None else None}
        self.finished = True
        self._write(RunEventKind.DONE, digest=digest, artifact=str(artifact), metrics=metrics)

    def failed(self, error: str) -> None:
        """The run failed, and why, in one sentence."""
        self.finished = True
        self._write(RunEventKind.FAILED, error=error)

    def close(self) -> None:
        """Stop the heartbeat and close the file; further calls of close do nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stream.close()

    def _write(self, kind: RunEventKind, **fields: Any) -> None:
        line = json.dumps(_finite({"kind": kind.value, "at": time.time(), **fields}), allow_nan=False)
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            self.heartbeat()


def read(path: Path | str, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events from byte `offset` on and the offset to go on from; a line still being written is left for later."""
    with Path(path).open("rb") as stream:
        stream.seek(offset)
        body = stream.read()
    whole = body.rfind(b"\n") + 1
    return [json.loads(line) for line in body[:whole].splitlines()], offset + whole


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value
