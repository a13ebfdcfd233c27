"""Measuring a shipped student on this machine, and saying what its table holds."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_core import artifacts
from ml_core.contracts import ModelKind
from ml_core.serving.engines import table as tables
from ml_core.serving.engines.interface import SERVABLE, Compiled, Program, Sizes, System
from ml_core.serving.engines.machine import this_machine

if TYPE_CHECKING:
    from torch import Tensor

    from ml_core.serving.engines.measure import Check

THREADS = 1  # of an operator: both scorers run so (serving.fraud, serving.report)
FRAUD_ROWS = (1, 8, 32, 128)
THRESHOLDS = tuple(step / 20 for step in range(1, 20))  # of alerts: 0.05, 0.10, … 0.95
PROBABILITY = 0.01  # how far a probability may be from the reference's
FILMS = 6


def measure_artifact(
    folder: Path,
    *,
    into: Path,
    rounds: int = 7,
    seconds: float = 0.1,
    systems: Sequence[System] = SERVABLE,
    shapes: Sequence[Sizes] | None = None,
) -> tuple[tables.Table, Path]:
    """Measure a student with integer layers and store its table in the folder `into`; returns both.

    One system serves all shapes: a row, or an image, is answered alike alone and in any batch.
    """
    from ml_core.serving.engines.measure import measure

    manifest = artifacts.read(folder)
    of_kind = _fraud if manifest.kind is ModelKind.FRAUD else _report
    program, usual, streams, check = of_kind(folder)
    table, graphs = measure(
        program, digest=manifest.digest, shapes=shapes or usual, threads=THREADS, streams=streams, together=True,
        systems=systems, check=check, rounds=rounds, seconds=seconds,
    )  # fmt: skip
    return table, tables.write(into, table, graphs=graphs)


def described(folder: Path, *, tables_in: Path) -> list[str]:
    """What `describe` prints of the artifact's engines. Imports no engine."""
    digest = artifacts.read(folder).digest
    table = tables.read(tables_in, digest=digest, machine=this_machine(threads=THREADS))
    if table is None:
        return [f"not measured on this machine: torch CPU. To measure: python -m ml_core measure {folder}"]
    return tables.lines(table)


def _fraud(folder: Path) -> "tuple[Program, Sequence[Sizes], int, Check]":
    from ml_core.serving.engines.programs import fraud_inputs, fraud_program, simulated_inputs
    from ml_core.serving.fraud import load_student

    model = load_student(folder)
    given = fraud_inputs(model, simulated_inputs(), slice(None))

    def check(call: Compiled, reference: Compiled) -> str:
        """The same alerts at every threshold, and probabilities that differ by rounding at most."""
        found, wanted = (model.calibrated(each(*given)[0].double()).sigmoid() for each in (call, reference))
        far = float((found - wanted).abs().max())
        if far > PROBABILITY:
            return f"a probability is {far:.1e} from the reference's (at most {PROBABILITY:g})"
        changed = [at for at in THRESHOLDS if ((found >= at) != (wanted >= at)).any()]
        if changed:
            return f"alerts differ at the threshold{'s' if changed[1:] else ''} {', '.join(map(str, changed))}"
        return ""

    return fraud_program(model), [{"b": rows} for rows in FRAUD_ROWS], os.cpu_count() or 1, check


def _report(folder: Path) -> "tuple[Program, Sequence[Sizes], int, Check]":
    from ml_core.models.cnn_teacher import presence_logit
    from ml_core.models.report_rules import states_decide
    from ml_core.serving.engines.programs import report_program, seen_of, simulated_film
    from ml_core.serving.report import ReportDrafter

    drafter = ReportDrafter(folder, device="cpu")
    films = [simulated_film(seed, size=drafter.config.image_size) for seed in range(FILMS)]

    def decided(call: Compiled, film: "Tensor", *, simulated: bool) -> object:
        seen = seen_of(call(film))
        presence, states = presence_logit(seen.states).sigmoid()[0], seen.states.softmax(-1)[0]
        gate = bool(seen.gate.sigmoid()[0] >= drafter.rules.gate)
        return gate, states_decide(presence.tolist(), states.tolist(), drafter.rules.for_films(simulated=simulated))

    def check(call: Compiled, reference: Compiled) -> str:
        """The same findings on simulated films, judged as simulated and as real ones."""
        for number, film in enumerate(films):
            for simulated in (True, False):
                found, wanted = (decided(each, film, simulated=simulated) for each in (call, reference))
                if found != wanted:
                    return f"its findings on simulated film {number} are not the reference's"
        return ""

    return report_program(drafter.student), [{"b": 1}], 1, check
