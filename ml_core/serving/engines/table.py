"""The measured table of an artifact on a machine: what each system takes for each shape, and which is chosen and why.

A measurement is of a machine, so it is no part of the artifact: it lies in a folder of its own, by digest and machine.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_core.config import from_mapping, to_mapping
from ml_core.errors import EngineError, InputError
from ml_core.serving.engines.interface import SYSTEMS, Sizes
from ml_core.serving.engines.machine import Machine

FORMAT = 1
MARGIN = 0.05  # of its time, by which another system must beat the reference


class TableError(EngineError):
    """A stored table, or a graph that it names, is damaged; measuring again replaces it."""

    code = "engine_table_invalid"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of a call: median, 5th and 95th percentile, and of how many calls."""

    ms: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One system: how far its outputs are from the reference (relative RMS), and may be, and why it is refused.

    file, sha256: the exported graph beside the table, "" for torch.
    """

    name: str
    version: str
    precision: str
    error: float | None = None
    limit: float | None = None
    refused: str = ""
    file: str = ""
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the axes that vary, and the timing of each system that was not refused."""

    sizes: dict[str, int]
    timings: dict[str, Timing]

    def __str__(self) -> str:
        return " ".join(f"{axis}{size}" for axis, size in self.sizes.items())


@dataclass(frozen=True, kw_only=True)
class Table:
    """together: one system serves all shapes, since an answer may not depend on what else is in its batch."""

    format: int
    digest: str
    machine: Machine
    made: str
    reference: str
    together: bool
    systems: tuple[Tried, ...]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The system that serves a shape, and why in words."""

    shape: Shape
    system: str
    why: str


def choose(table: Table) -> tuple[Choice, ...]:
    """What serves each shape: the fastest that is not refused, if it beats the reference by more than MARGIN.

    Where one system must serve all shapes it is that with the least geometric mean of its times.
    """
    if not table.together:
        return tuple(_choice(table, shape, _fastest(table, (shape,))) for shape in table.shapes)
    system = _fastest(table, table.shapes)
    return tuple(_choice(table, shape, system) for shape in table.shapes)


def chosen_for(table: Table, sizes: Sizes) -> Choice:
    """The choice for the measured shape that is nearest by ratio of sizes."""

    def distance(choice: Choice) -> float:
        return sum(abs(math.log(size / sizes[axis])) for axis, size in choice.shape.sizes.items())

    return min(choose(table), key=distance)


def path_of(folder: Path, *, digest: str, machine: Machine) -> Path:
    """Where the table of an artifact on a machine lies."""
    return folder / f"{digest[:16]}-{machine.key}.json"


def read(folder: Path, *, digest: str, machine: Machine) -> Table | None:
    """The table, or None where this artifact was not measured on this machine. Raises TableError for a damaged one."""
    path = path_of(folder, digest=digest, machine=machine)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        table = from_mapping(Table, json.loads(text), where=path.name)
    except (ValueError, InputError) as error:
        raise TableError(f"{path}: {error}; measure again") from error
    known = table.format == FORMAT and table.digest == digest and table.machine == machine
    if not known or any(each.name not in SYSTEMS for each in table.systems):
        raise TableError(f"{path}: made by another version, or for another artifact or machine; measure again")
    return table


def write(folder: Path, table: Table, *, graphs: Mapping[str, bytes]) -> Path:
    """Store a table and the graphs that it names; returns the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in graphs.items():
        _replace(folder / name, body)
    path = path_of(folder, digest=table.digest, machine=table.machine)
    _replace(path, json.dumps(to_mapping(table), indent=1).encode())
    return path


def graph(folder: Path, tried: Tried) -> bytes:
    """The exported graph of a system, verified. Raises TableError where it is missing or damaged."""
    try:
        body = (folder / tried.file).read_bytes()
    except OSError as error:
        raise TableError(f"{folder / tried.file}: {error}; measure again") from error
    if hashlib.sha256(body).hexdigest() != tried.sha256:
        raise TableError(f"{folder / tried.file} is not the graph that was measured; measure again")
    return body


def lines(table: Table) -> list[str]:
    """The table, the choice for each shape, what was refused and why: lines to print."""
    said = [f"measured {table.made} on {table.machine}"]
    if table.together:
        said.append("one engine for all shapes: an answer may not depend on what else is in its batch")
    for choice in choose(table):
        said.append(f"{choice.shape}: {choice.system}, {choice.why}")
        said += [
            f"    {name:<26} {timing.ms:9.3f} ms ({timing.low:.3f} to {timing.high:.3f}, {timing.n} calls)"
            for name, timing in sorted(choice.shape.timings.items(), key=lambda item: item[1].ms)
        ]
    said += [f"refused: {each.name}: {each.refused}" for each in table.systems if each.refused]
    return said


def _fastest(table: Table, shapes: Sequence[Shape]) -> str:
    def mean(name: str) -> float:
        return sum(math.log(shape.timings[name].ms) for shape in shapes) / len(shapes)

    names = [each.name for each in table.systems if not each.refused]
    best = min(names, key=mean)
    return best if mean(best) < mean(table.reference) + math.log(1 - MARGIN) else table.reference


def _choice(table: Table, shape: Shape, system: str) -> Choice:
    ours, reference = shape.timings[system], shape.timings[table.reference]
    if system != table.reference:
        ratio = reference.ms / ours.ms
        why = f"{ours.ms:.3g} ms, {table.reference} {reference.ms:.3g} ms ({ratio:.1f}x)"
        return Choice(shape=shape, system=system, why=why)
    others = {name: timing.ms for name, timing in shape.timings.items() if name != system}
    if not others:
        return Choice(shape=shape, system=system, why=f"{ours.ms:.3g} ms; nothing else was admitted")
    next_best = min(others, key=lambda name: others[name])
    why = f"{ours.ms:.3g} ms; the best of the others is {next_best}, {others[next_best]:.3g} ms"
    return Choice(shape=shape, system=system, why=why)


def _replace(path: Path, body: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(body)
    partial.replace(path)
