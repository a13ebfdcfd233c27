"""Where a request's time goes: seconds by named stage, collected along the way and shown as a Server-Timing header."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter

Seconds = dict[str, float]
_collecting: ContextVar[Seconds | None] = ContextVar("stages", default=None)


@contextmanager
def collected() -> Iterator[Seconds]:
    """What `stage` and `add` measure inside, by name."""
    seconds: Seconds = {}
    token = _collecting.set(seconds)
    try:
        yield seconds
    finally:
        _collecting.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the time inside under `name`; nothing where nobody collects."""
    began = perf_counter()
    try:
        yield
    finally:
        add(name, perf_counter() - began)


def add(name: str, seconds: float) -> None:
    """Count seconds that were measured elsewhere."""
    found = _collecting.get()
    if found is not None:
        found[name] = found.get(name, 0.0) + seconds


def header(seconds: Mapping[str, float]) -> str:
    """As the Server-Timing header has it (W3C): names with milliseconds."""
    return ", ".join(f"{name};dur={1e3 * each:.2f}" for name, each in seconds.items())
