"""A program on the systems that its table chose for this machine: what the scorers call in the place of the module."""

import logging
from pathlib import Path

from torch import Tensor

from ml_core.serving.engines import table as tables
from ml_core.serving.engines.build import compiled
from ml_core.serving.engines.interface import SYSTEMS, Compiled, Program, Sizes
from ml_core.serving.engines.machine import this_machine

_LOG = logging.getLogger(__name__)


class Served:
    """Calls go to what was chosen for the measured shape that is nearest. Threads may share it."""

    def __init__(self, table: tables.Table, program: Program, *, folder: Path, threads: int, streams: int) -> None:
        """Compiles what was chosen, from the graphs in `folder`. Raises EngineMissing and TableError."""
        self.table = table
        entries = {each.name: each for each in table.systems}
        self._calls: dict[str, Compiled] = {}
        for name in dict.fromkeys(choice.system for choice in tables.choose(table)):
            model = tables.graph(folder, entries[name]) if entries[name].file else b""
            self._calls[name] = compiled(program, system=SYSTEMS[name], model=model, threads=threads, streams=streams)
        # one name where all shapes have one engine, as the shipped students have
        self.name = " or ".join(self._calls)
        self._nearest: dict[tuple[tuple[str, int], ...], Compiled] = {}
        _LOG.info("engines: %s", "; ".join(f"{each.shape}: {each.system}, {each.why}" for each in tables.choose(table)))

    def __call__(self, sizes: Sizes, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The program's outputs. sizes: of the inputs' varying axes."""
        key = tuple(sizes.items())
        if key not in self._nearest:
            self._nearest[key] = self._calls[tables.chosen_for(self.table, sizes).system]
        return self._nearest[key](*inputs)


def served(program: Program, *, digest: str, folder: Path | None, threads: int, streams: int = 1) -> Served | None:
    """What serves on this machine, or None, which is torch: where there is no table, or torch is its choice throughout.

    Raises TableError for a damaged table.
    """
    if folder is None:
        return None
    table = tables.read(folder, digest=digest, machine=this_machine(threads=threads))
    if table is None or all(choice.system == table.reference for choice in tables.choose(table)):
        return None
    return Served(table, program, folder=folder, threads=threads, streams=streams)
