"""Speed of the fraud engine on this machine: single transactions, batches through states, replay, explanations.

`assay` serves by the engine measured fastest here (measured first), `assay by torch` by torch itself.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ml_core.contracts import EntityState, ModelKey, ModelKind, ScoreRequest, Transaction
from ml_core.data.bank import simulate
from ml_core.data.handbook import events_of, table_from_columns
from ml_core.data.replay import Replay
from ml_core.evals.bench import meta, row, timed
from ml_core.evals.fraud import SHIPPED, score_table
from ml_core.serving.engines.artifact import measure_artifact
from ml_core.serving.engines.table import lines
from ml_core.serving.fraud import FraudScorer

COMMAND = "make bench NAME=fraud-engine"
RESULT = Path(__file__).parent / "results" / "fraud-engine.json"


def main() -> int:
    """Measure, write the result file, print it as one line of JSON."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as tables:
        chosen, _ = measure_artifact(SHIPPED, into=Path(tables))
        scorers = {"assay": FraudScorer(SHIPPED, tables=Path(tables)), "assay by torch": FraudScorer(SHIPPED)}
    table = table_from_columns(simulate(seed=51, cards=2_000, terminals=4_000, days=60))
    transactions = [
        Transaction(
            id=str(table.id[i]),
            at=int(table.at[i]),
            card=f"c{table.card[i]}",
            terminal=f"t{table.terminal[i]}",
            amount_cents=int(table.cents[i]),
            label=bool(table.fraud[i]),
            label_known_at=int(table.at[i]) + 7 * 86_400,
        )
        for i in range(len(table))
    ]
    rows = [_replay(table)]
    for system, scorer in scorers.items():
        rows += [_model(scorer, table, system=system), *_requests(scorer, transactions, system=system)]
    about = meta("fraud-engine", packages=("torch", "numba", "numpy", "onnxruntime", "openvino"))
    result = {"meta": {**about, "command": COMMAND, "engines": lines(chosen)}, "rows": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def _replay(table) -> dict:
    """States and inputs alone, one core."""
    events, rates = events_of(table), []
    for _ in range(3):
        replay, began = Replay(), time.perf_counter()
        for begin in range(0, len(events), 20_000):
            replay.feed(events.part(begin, min(begin + 20_000, len(events))))
        rates.append(len(events) / (time.perf_counter() - began))
    return row("fraud-engine/replay", system="assay", metric="rows_s", unit="rows/s", values=rates)


def _model(scorer: FraudScorer, table, *, system: str) -> dict:
    """States and model, two threads."""
    n, rates = 40_000, []
    part = type(table)(**{name: getattr(table, name)[:n] for name in table.__slots__})
    for _ in range(3):
        began = time.perf_counter()
        score_table(scorer, part, first=0)
        rates.append(len(part) / (time.perf_counter() - began))
    return row("fraud-engine/bulk", system=system, metric="rows_s", unit="rows/s", values=rates)


def _requests(scorer: FraudScorer, transactions: list[Transaction], *, system: str) -> list[dict]:
    """Through the contract, states as bytes in and out."""
    key = ModelKey(kind=ModelKind.FRAUD, digest=scorer.digest, folder=str(SHIPPED))
    states: dict[tuple, EntityState] = {}

    def score(part: list[Transaction], *, explain_from: float = 1.1) -> None:
        names = {("card", t.card) for t in part} | {("terminal", t.terminal) for t in part}
        known = tuple(states[name] for name in names if name in states)
        request = ScoreRequest(model=key, transactions=tuple(part), states=known, explain_from=explain_from)
        for state in scorer.score(request).states:
            states[(state.kind.value, state.key)] = state

    rates = []
    bulk = transactions[:60_000]
    for begin in range(0, len(bulk), 5_000):
        began = time.perf_counter()
        score(bulk[begin : begin + 5_000])
        rates.append(5_000 / (time.perf_counter() - began))
    rest = iter(transactions[60_000:])
    single = timed(lambda: score([next(rest)]), seconds=3.0, most=1_000)
    explained = timed(lambda: score([next(rest)], explain_from=0.0), seconds=3.0, most=200)
    sizes = [float(len(state.data)) for state in states.values()]
    return [
        row("fraud-engine/requests_of_5000", system=system, metric="rows_s", unit="rows/s", values=rates),
        row("fraud-engine/single", system=system, metric="ms", unit="ms", values=single),
        row("fraud-engine/single_with_reasons", system=system, metric="ms", unit="ms", values=explained),
        row("fraud-engine/state", system=system, metric="size", unit="bytes", values=list(np.array(sizes))),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
