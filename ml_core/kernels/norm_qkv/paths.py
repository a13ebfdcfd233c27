"""Which implementation runs for which shape: a table of measured times, and a record of every choice that was made."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ml_core.errors import InputError

_FILE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a path is chosen for. m rows of width d to c columns; `form`: norm, activation, residual, as the op says."""

    op: str
    m: int
    d: int
    c: int
    form: str
    device: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The path that runs for a shape, why, and the measured milliseconds of all (empty: none were measured)."""

    shape: Shape
    path: str
    why: str
    ms: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        s = self.shape
        return f"{s.op} {s.m}x{s.d}->{s.c} {s.form} {s.dtype} on {s.device}: {self.path} ({self.why})"


class PathTable:
    """Measured milliseconds by shape and path."""

    def __init__(self, rows: Mapping[Shape, Mapping[str, float]] | None = None) -> None:
        self.rows: dict[Shape, dict[str, float]] = {shape: dict(ms) for shape, ms in (rows or {}).items()}
        self._chosen: dict[tuple[Shape, tuple[str, ...]], Choice] = {}

    def choose(self, shape: Shape, *, candidates: Sequence[str], otherwise: str) -> Choice:
        """The fastest measured candidate at this m, or at the nearest m within a factor of 2; else `otherwise`."""
        key = (shape, tuple(candidates))
        if key not in self._chosen:
            self._chosen[key] = self._decide(shape, candidates=candidates, otherwise=otherwise)
        return self._chosen[key]

    def record(self, shape: Shape, ms: Mapping[str, float]) -> None:
        """Put measured times in; later choices heed them."""
        self.rows[shape] = dict(ms)
        self._chosen.clear()

    def chosen(self) -> list[Choice]:
        """Every choice made since the table last changed, in order."""
        return list(self._chosen.values())

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        rows = [asdict(shape) | {"ms": ms} for shape, ms in self.rows.items()]
        path.write_text(json.dumps(rows, indent=0) + "\n")

    @classmethod
    def load(cls, path: Path) -> "PathTable":
        """Read what `save` wrote. Raises InputError where the file is no such table."""
        try:
            rows = json.loads(path.read_text())
            return cls({Shape(**{k: v for k, v in row.items() if k != "ms"}): row["ms"] for row in rows})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: no table of measured paths ({error})") from error

    def _decide(self, shape: Shape, *, candidates: Sequence[str], otherwise: str) -> Choice:
        near = [
            row for row in self.rows if _but_m(row) == _but_m(shape) and max(row.m, shape.m) <= 2 * min(row.m, shape.m)
        ]
        near = [row for row in near if any(path in self.rows[row] for path in candidates)]
        if not near:
            return Choice(shape=shape, path=otherwise, why="nothing measured for this shape here: the rule's path")
        at = min(near, key=lambda row: max(row.m, shape.m) / max(1, min(row.m, shape.m)))
        ms = {path: value for path, value in self.rows[at].items() if path in candidates}
        best = min(ms, key=lambda path: ms[path])
        why = f"fastest of {len(ms)} measured at m {at.m}: {ms[best]:.4g} ms"
        return Choice(shape=shape, path=best, why=why, ms=ms)


def shape_of(x: torch.Tensor, *, op: str, c: int, form: str) -> Shape:
    """The shape that x (…, d) makes an operator with c output columns."""
    d = x.shape[-1]
    m = x.numel() // max(d, 1)
    return Shape(op=op, m=m, d=d, c=c, form=form, device=device_name(x.device), dtype=str(x.dtype).split(".")[-1])


def device_name(device: torch.device) -> str:
    """The GPU's name; of a CPU its vector instructions and torch's threads, which decide its times."""
    if device.type == "cuda":
        return _cuda_name(device.index if device.index is not None else torch.cuda.current_device())
    return f"cpu {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"


def measure(
    shape: Shape,
    runs: Mapping[str, Callable[[], torch.Tensor]],
    *,
    truth: torch.Tensor,
    clock: Callable[[Callable[[], object]], float],
    tolerance: float,
    table: PathTable | None = None,
) -> dict[str, Any]:
    """Time every path that is right, put the times into the table, and say which were wrong.

    clock: milliseconds of a call. A path whose relative RMS error against `truth` exceeds `tolerance` is never chosen.
    """
    ms, wrong = {}, {}
    for path, run in runs.items():
        got = run().double()
        error = float((got - truth).pow(2).mean().sqrt() / truth.pow(2).mean().sqrt().clamp_min(1e-30))
        if error <= tolerance:
            ms[path] = clock(run)
        else:
            wrong[path] = error
    (table or TABLE).record(shape, ms)
    return {"shape": shape, "ms": ms, "wrong": wrong}


def _but_m(shape: Shape) -> tuple[Any, ...]:
    return (shape.op, shape.d, shape.c, shape.form, shape.device, shape.dtype)


@lru_cache
def _cuda_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


TABLE = PathTable.load(_FILE) if _FILE.exists() else PathTable()
