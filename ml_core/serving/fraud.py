"""Serves the fraud student: transactions and entity states in, scores, reasons and changed states out.

The same row gives the same bits alone and in any batch: integer products are exact, everything else works on one row
(a test). Stored probabilities are rounded to 1e-6.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ml_core import artifacts
from ml_core.config import from_mapping
from ml_core.contracts import (
    EntityKind,
    EntityState,
    Label,
    ModelKind,
    Score,
    ScoreRequest,
    ScoreResult,
    Transaction,
)
from ml_core.data.card_state import FRAUD, GENUINE, Pool, decode_pool, encode_entity, key_hash, learn_label
from ml_core.data.extra_inputs import extras_of
from ml_core.data.fraud_features import CHANNELS, FEATURES
from ml_core.data.replay import Events, Inputs, advance, hash_keys
from ml_core.errors import ArtifactError, EngineMissing, InputError
from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig
from ml_core.quant import load_quantized
from ml_core.serving.engines.interface import REFERENCE
from ml_core.serving.engines.programs import fraud_inputs, fraud_program
from ml_core.serving.engines.served import Served, served
from ml_core.serving.fraud_reasons import explain

CALL = 128  # the fewest ms a row on one core (docs/log.md, 2026-11-25): larger calls leave the cache


@dataclass(kw_only=True, slots=True)
class _Entities:
    """The states of one kind while a request runs."""

    kind: EntityKind
    keys: list[str]
    row: dict[str, int]
    pool: Pool
    changed: set[int]

    @classmethod
    def of(cls, kind: EntityKind, *, keys: Sequence[str], states: Iterable[EntityState]) -> "_Entities":
        """`keys`: one a transaction, so that each entity gets room; an entity without a state is new."""
        blobs = {state.key: state.data for state in states if state.kind is kind}
        names = sorted({*keys, *blobs})
        row = {key: number for number, key in enumerate(names)}
        room = np.bincount(np.array([row[key] for key in keys], np.int64), minlength=len(names)).astype(np.int64)
        pool = decode_pool([blobs.get(key, b"") for key in names], kind=kind, room=room)
        return cls(kind=kind, keys=names, row=row, pool=pool, changed={row[key] for key in keys})

    def learn(self, key: str, label: Label) -> None:
        """Write a label into this entity, if it is here and remembers the transaction."""
        row = self.row.get(key)
        word = (label.known_at << 2) | (FRAUD if label.fraud else GENUINE)
        if row is not None and learn_label(self.pool, row, key_hash(label.transaction_id), word):
            self.changed.add(row)

    def written(self) -> tuple[EntityState, ...]:
        """The states that changed, in key order."""
        return tuple(
            EntityState(kind=self.kind, key=self.keys[row], data=encode_entity(self.pool, row, kind=self.kind))
            for row in sorted(self.changed)
        )


class FraudScorer:
    """One loaded student. Raises ArtifactError when the folder holds another kind or another feature layout.

    `extras`: the further inputs that the artifact declares (None: none); it takes them from Transaction.extras, or
    encoded behind the features of `probabilities`' inputs.
    """

    def __init__(self, folder: str | Path, *, tables: Path | None = None) -> None:
        """`tables`: where `python -m ml_core measure` stored what this machine's engines take; torch without one."""
        manifest = artifacts.read(folder)
        if manifest.kind is not ModelKind.FRAUD:
            raise ArtifactError(f"{folder} holds a {manifest.kind} model, not a fraud model")
        self.digest = manifest.digest
        self.extras = extras_of(manifest.config)
        self.model = load_student(folder)
        self.served = served(
            fraud_program(self.model), digest=self.digest, folder=tables, threads=1, streams=os.cpu_count() or 1
        )
        self._warm_up()

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Apply labels, move the states, score in the order of the request.

        Raises InputError for transactions out of order, and for extras that break a rule of the artifact's mapping.
        """
        encoded = None
        if self.extras is not None:
            at = np.array([t.at for t in request.transactions], np.int64)
            encoded = self.extras.encode_raw([t.extras for t in request.transactions], at=at)
        return self._score(request, encoded)

    def learn_labels(self, states: tuple[EntityState, ...], labels: tuple[Label, ...]) -> tuple[EntityState, ...]:
        """Put labels into the states given; returns those that changed."""
        cards = _Entities.of(EntityKind.CARD, keys=(), states=states)
        terminals = _Entities.of(EntityKind.TERMINAL, keys=(), states=states)
        for label in labels:
            cards.learn(label.card, label)
            terminals.learn(label.terminal, label)
        return cards.written() + terminals.written()

    def probabilities(self, inputs: Inputs) -> npt.NDArray[np.float64]:
        """Calibrated probabilities, rounded to 1e-6."""
        return np.round(self._evaluate(inputs, by=self.served), 6)

    @property
    def engine(self) -> str:
        """The name of the engine that serves here."""
        return REFERENCE.name if self.served is None else self.served.name

    def _by(self, engine: str) -> Served | None:
        """The engine of that name, empty for the one that serves; None is torch itself. Raises EngineMissing."""
        if engine in ("", self.engine):
            return self.served
        if engine != REFERENCE.name:
            raise EngineMissing(f"engine: {engine!r} does not serve this model here, {self.engine!r} does")
        return None

    def _score(self, request: ScoreRequest, encoded: npt.NDArray[np.float32] | None) -> ScoreResult:
        began = time.perf_counter()
        by = self._by(request.engine)
        transactions = request.transactions
        if any(a.at > b.at for a, b in zip(transactions, transactions[1:], strict=False)):
            raise InputError("transactions: not sorted by at")
        cards = _Entities.of(EntityKind.CARD, keys=[t.card for t in transactions], states=request.states)
        terminals = _Entities.of(EntityKind.TERMINAL, keys=[t.terminal for t in transactions], states=request.states)
        for label in request.labels:
            cards.learn(label.card, label)
            terminals.learn(label.terminal, label)
        inputs = advance(cards.pool, terminals.pool, _events(transactions, cards=cards, terminals=terminals))
        if encoded is not None:
            inputs = inputs.with_extras(encoded)
        features_s = time.perf_counter() - began
        scores, reasons_s = self._scores(inputs, transactions, explain_from=request.explain_from, by=by)
        return ScoreResult(
            model_digest=self.digest,
            scores=tuple(scores),
            states=cards.written() + terminals.written(),
            seconds=time.perf_counter() - began,
            engine=REFERENCE.name if by is None else by.name,
            features_s=features_s,
            reasons_s=reasons_s,
        )

    def _evaluate(self, inputs: Inputs, *, by: Served | None) -> npt.NDArray[np.float64]:
        """Calls are CALL rows wide, one thread a core shares them out; no row's answer depends on the others."""
        parts = [slice(begin, begin + CALL) for begin in range(0, len(inputs), CALL)]
        with _one_thread_an_operator():
            if len(parts) < 2:
                values = [self._call(inputs, part, by=by) for part in parts]
            else:
                with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
                    values = list(pool.map(lambda part: self._call(inputs, part, by=by), parts))
        return np.concatenate(values) if values else np.zeros(0)

    def _scores(
        self, inputs: Inputs, transactions: Sequence[Transaction], *, explain_from: float, by: Served | None
    ) -> tuple[list[Score], float]:
        """Bare scores, and explained ones from `explain_from` on; and the seconds that explaining took."""
        probability = np.round(self._evaluate(inputs, by=by), 6)
        scores = [
            Score(transaction_id=t.id, probability=float(p)) for t, p in zip(transactions, probability, strict=True)
        ]
        began = time.perf_counter()
        high = [int(i) for i in np.flatnonzero(probability >= explain_from)]
        explained = explain(
            self.model,
            inputs,
            high,
            transactions=transactions,
            probability=probability,
            threshold=explain_from,
            evaluate=partial(self._evaluate, by=by),
        )
        for i, score in zip(high, explained, strict=True):
            scores[i] = score
        return scores, time.perf_counter() - began

    def _call(self, inputs: Inputs, part: slice, *, by: Served | None) -> npt.NDArray[np.float64]:
        given = fraud_inputs(self.model, inputs, part)
        with torch.inference_mode():
            logits = self.model(*given) if by is None else by({"b": len(given[0])}, *given)[0]
            return torch.sigmoid(self.model.calibrated(logits).double()).numpy()

    def _warm_up(self) -> None:
        """Compile (or load from cache) the state machine, so that the first request does not pay for it."""
        first = Transaction(id="a", at=0, card="c", terminal="t", amount_cents=1_000)
        request = ScoreRequest(model=None, transactions=(first,), explain_from=0.0)
        encoded = None if self.extras is None else np.zeros((1, len(self.extras.names)), np.float32)
        states = self._score(request, encoded).states
        label = Label(transaction_id="a", at=0, card="c", terminal="t", fraud=True, known_at=1)
        self.learn_labels(states, (label,))


@contextmanager
def _one_thread_an_operator() -> Iterator[None]:
    """The operators are too small to share: on a busy machine a second thread's barriers cost 50 times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_student(folder: str | Path) -> FraudStudent:
    """The student of an artifact, ready to serve on the CPU."""
    manifest = artifacts.read(folder)
    layout = (manifest.config.get("feature_names"), manifest.config.get("channel_names"))
    if layout != (list(FEATURES), list(CHANNELS)):
        raise ArtifactError(f"{folder} was made for another feature layout")
    config = from_mapping(FraudStudentConfig, manifest.config["student"])
    extras = extras_of(manifest.config)
    widths = (len(FEATURES), ()) if extras is None else (len(FEATURES) + len(extras.numbers), extras.sizes)
    if (config.features, config.categories) != widths:
        raise ArtifactError(f"{folder}: its student reads other inputs than the artifact declares")
    model = FraudStudent(config)
    load_quantized(model, artifacts.load_tensors(folder))
    return model


def _events(transactions: Sequence[Transaction], *, cards: _Entities, terminals: _Entities) -> Events:
    n = len(transactions)

    def column(values: Iterable[int]) -> npt.NDArray[np.int64]:
        return np.fromiter(values, np.int64, n)

    return Events(
        at=column(t.at for t in transactions),
        offset=column(t.utc_offset_s for t in transactions),
        cents=column(t.amount_cents for t in transactions),
        card=column(cards.row[t.card] for t in transactions),
        terminal=column(terminals.row[t.terminal] for t in transactions),
        card_key=hash_keys([t.card for t in transactions]),
        terminal_key=hash_keys([t.terminal for t in transactions]),
        id_key=hash_keys([t.id for t in transactions]),
        label_word=column(_label_word(t) for t in transactions),
    )


def _label_word(transaction: Transaction) -> int:
    if transaction.label is None or transaction.label_known_at is None:
        return 0
    return (transaction.label_known_at << 2) | (FRAUD if transaction.label else GENUINE)
