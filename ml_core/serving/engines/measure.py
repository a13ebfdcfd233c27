"""Measuring a program's systems on this machine: parity first, then times in interleaved rounds, into a table."""

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from ml_core.errors import EngineError
from ml_core.serving.engines import parity
from ml_core.serving.engines.build import compiled, export_for
from ml_core.serving.engines.interface import REFERENCE, SERVABLE, Compiled, Program, Sizes, System
from ml_core.serving.engines.machine import this_machine
from ml_core.serving.engines.table import FORMAT, Shape, Table, Timing, Tried

Check = Callable[[Compiled, Compiled], str]  # (a system, the reference): why it is refused, or ""


def measure(
    program: Program,
    *,
    digest: str,
    shapes: Sequence[Sizes],
    threads: int,
    streams: int = 1,
    together: bool = False,
    systems: Sequence[System] = SERVABLE,
    check: Check | None = None,
    peers: Mapping[str, Compiled] | None = None,
    rounds: int = 7,
    seconds: float = 0.1,
) -> tuple[Table, dict[str, bytes]]:
    """The table, and the graphs that it names, by file.

    shapes: sizes of the axes that vary. together: see table.Table; a system whose rows depend on their batch is refused
    then. check: what else an artifact asks of an engine. peers: timed in the same rounds, and never chosen. rounds,
    seconds: each round times every system for so long.
    """
    machine = this_machine(threads=threads)
    reference = compiled(program, system=REFERENCE, model=b"", threads=threads)
    tried, calls, graphs = [], {REFERENCE.name: reference}, {}
    for system in systems:
        if system is REFERENCE:
            tried.append(_entry(system, version=reference.version))
            continue
        entry, call, model = _try(
            program, system=system, reference=reference, shapes=shapes, threads=threads, streams=streams,
            together=together, check=check,
        )  # fmt: skip
        if call is not None and model:
            entry = _filed(entry, digest=digest, model=model)
            graphs[entry.file] = model
        if call is not None:
            calls[system.name] = call
        tried.append(entry)
    calls |= peers or {}
    measured = tuple(_timed(program, calls, sizes=sizes, rounds=rounds, seconds=seconds) for sizes in shapes)
    table = Table(
        format=FORMAT,
        digest=digest,
        machine=machine,
        made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        reference=REFERENCE.name,
        together=together,
        systems=tuple(tried),
        shapes=measured,
    )
    return table, graphs


def _try(
    program: Program,
    *,
    system: System,
    reference: Compiled,
    shapes: Sequence[Sizes],
    threads: int,
    streams: int,
    together: bool,
    check: Check | None,
) -> tuple[Tried, Compiled | None, bytes]:
    """The system's entry, and, where it is not refused, its call and its graph."""
    entry = _entry(system, version="")
    try:
        off = parity.product_error(program, system=system, threads=threads)
        if off > parity.PRODUCTS:
            why = f"its products are {off:.1e} off at full scale (at most {parity.PRODUCTS:.0e}): they saturate"
            return replace(entry, error=off, limit=parity.PRODUCTS, refused=why), None, b""
        largest = {axis: max(2, max(sizes[axis] for sizes in shapes)) for axis in program.limits}
        model = export_for(program, system=system, sizes=largest)
        call = compiled(program, system=system, model=model, threads=threads, streams=streams)
    except EngineError as why_not:
        return replace(entry, refused=str(why_not)), None, b""
    entry = replace(entry, version=call.version)
    pairs = [parity.output_errors(program, call, reference=reference, sizes=sizes) for sizes in shapes]
    error, limit = max(pairs, key=lambda pair: pair[0] / pair[1])
    entry = replace(entry, error=error, limit=limit)
    if error > limit:
        why = f"its outputs are {error:.1e} from {reference.system.name}'s (at most {limit:.1e})"
        return replace(entry, refused=why), None, b""
    if together and any(parity.rows_differ(call, program, axis="b", sizes=sizes) for sizes in shapes if "b" in sizes):
        return replace(entry, refused="a row's answer depends on what else is in its batch"), None, b""
    if check is not None and (why := check(call, reference)):
        return replace(entry, refused=why), None, b""
    return entry, call, model


def _timed(program: Program, calls: dict[str, Compiled], *, sizes: Sizes, rounds: int, seconds: float) -> Shape:
    """Rounds over all systems, so that what else the machine does falls on all of them."""
    given = program.example(sizes, 0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(*given)
    for _ in range(rounds):
        for name, call in calls.items():
            end = time.perf_counter() + seconds
            call(*given)  # what ran before has left the caches to itself
            while True:
                start = time.perf_counter()
                call(*given)
                times[name].append((time.perf_counter() - start) * 1e3)
                if time.perf_counter() > end:
                    break
    return Shape(sizes=dict(sizes), timings={name: timing(values) for name, values in times.items()})


def timing(values: Sequence[float]) -> Timing:
    """Median and spread of milliseconds."""
    ordered = sorted(values)
    edge = round(0.05 * (len(ordered) - 1))
    return Timing(ms=statistics.median(ordered), low=ordered[edge], high=ordered[-1 - edge], n=len(ordered))


def _entry(system: System, *, version: str) -> Tried:
    return Tried(name=system.name, version=version, precision=system.precision)


def _filed(entry: Tried, *, digest: str, model: bytes) -> Tried:
    file = f"{digest[:16]}-{entry.name.replace(' ', '-')}.onnx"
    return replace(entry, file=file, sha256=hashlib.sha256(model).hexdigest())
