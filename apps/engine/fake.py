"""An engine without torch that keeps the contract: for tests of the platform, never for real decisions."""

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

from ml_core.contracts import (
    Counterfactual,
    Draft,
    DraftRequest,
    DraftResult,
    EntityKind,
    EntityState,
    Finding,
    FindingState,
    Label,
    ModelDescription,
    ModelKey,
    ModelKind,
    Reason,
    Score,
    ScoreRequest,
    ScoreResult,
    Section,
    Sentence,
    StudyInput,
    Transaction,
)
from ml_core.errors import ArtifactError, InputError, StateError

USUAL_CENTS = 5_000
VERSION = 1
IMAGE_MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
MAX_IMAGES = 16


class FakeEngine:
    """Scores by the amount against the card's own mean, drafts by the images' digests; equal input, equal answer."""

    def score(self, request: ScoreRequest, /) -> ScoreResult:
        """Score transactions; returns changed states too."""
        began = time.perf_counter()
        _require(request.model, kind=ModelKind.FRAUD)
        given = {(state.kind, state.key): state for state in request.states}
        memory = {key: _unpack(state) for key, state in given.items()}
        scores: list[Score] = []
        order = [(transaction.at, transaction.id) for transaction in request.transactions]
        if order != sorted(order):
            raise InputError("transactions: must be sorted by at, then id")
        _learn(memory, labels=request.labels)
        for transaction in request.transactions:
            card = memory.setdefault((EntityKind.CARD, transaction.card), _empty())
            terminal = memory.setdefault((EntityKind.TERMINAL, transaction.terminal), _empty())
            scores.append(_score(transaction, card=card, terminal=terminal, explain_from=request.explain_from))
            _append(card, transaction=transaction)
            _append(terminal, transaction=transaction)
        return ScoreResult(
            model_digest=request.model.digest,
            scores=tuple(scores),
            states=_changed(memory, given=given),
            seconds=time.perf_counter() - began,
        )

    def learn_labels(
        self, model: ModelKey, states: tuple[EntityState, ...], labels: tuple[Label, ...]
    ) -> tuple[EntityState, ...]:
        """Put labels that became known into the states of their cards and terminals."""
        _require(model, kind=ModelKind.FRAUD)
        given = {(state.kind, state.key): state for state in states}
        memory = {key: _unpack(state) for key, state in given.items()}
        _learn(memory, labels=labels)
        return _changed(memory, given=given)

    def draft(self, request: DraftRequest, /) -> DraftResult:
        """Draft one report a study; a study of which no image is an image is declined by name."""
        began = time.perf_counter()
        _require(request.model, kind=ModelKind.REPORT)
        drafts = tuple(_draft(study) for study in request.studies)
        return DraftResult(model_digest=request.model.digest, drafts=drafts, seconds=time.perf_counter() - began)

    def describe(self, folder: str, /) -> ModelDescription:
        """Read a real manifest where one lies, verified as the real engine does."""
        from ml_core import artifacts

        return artifacts.describe(folder)

    def load(self, model: ModelKey, /) -> None:
        """Nothing to load; a folder that does not exist is still refused."""
        if not Path(model.folder).is_dir():
            raise ArtifactError(f"{model.folder} is no folder")


def _require(model: ModelKey, *, kind: ModelKind) -> None:
    if model.kind != kind:
        raise InputError(f"model: a {model.kind} model cannot do {kind} work")


def _empty() -> dict[str, int]:
    return {"version": VERSION, "count": 0, "sum_cents": 0, "frauds": 0, "genuine": 0}


def _unpack(state: EntityState) -> dict[str, int]:
    if not state.data:
        return _empty()
    try:
        memory = json.loads(state.data)
        version = memory["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"state of {state.kind} {state.key} is damaged: {error!r}") from error
    if version != VERSION:
        raise StateError(f"state of {state.kind} {state.key} has version {version}, expected {VERSION}")
    return memory


def _changed(
    memory: dict[tuple[EntityKind, str], dict[str, int]], *, given: dict[tuple[EntityKind, str], EntityState]
) -> tuple[EntityState, ...]:
    states = []
    for (kind, key), values in memory.items():
        before = given.get((kind, key), EntityState(kind=kind, key=key))
        after = replace(before, data=json.dumps(values, sort_keys=True).encode())
        if after.data != before.data and values != _empty():
            states.append(after)
    return tuple(states)


def _learn(memory: dict[tuple[EntityKind, str], dict[str, int]], *, labels: tuple[Label, ...]) -> None:
    for label in labels:
        for key in ((EntityKind.CARD, label.card), (EntityKind.TERMINAL, label.terminal)):
            memory.setdefault(key, _empty())["frauds" if label.fraud else "genuine"] += 1


def _append(memory: dict[str, int], *, transaction: Transaction) -> None:
    memory["count"] += 1
    memory["sum_cents"] += transaction.amount_cents


def _score(transaction: Transaction, *, card: dict[str, int], terminal: dict[str, int], explain_from: float) -> Score:
    usual = (card["sum_cents"] + 2 * USUAL_CENTS) / (card["count"] + 2)
    ratio = transaction.amount_cents / max(usual, 100.0)
    parts = {
        "amount": (min(60.0, 12.0 * max(ratio - 1.0, 0.0)), f"amount is {ratio:.1f} × this card’s usual"),
        "terminal": (min(38.0, 10.0 * terminal["frauds"]), f"{terminal['frauds']} frauds known at this terminal"),
    }
    base = 1.0
    probability = (base + sum(points for points, _ in parts.values())) / 100.0
    if probability < explain_from:
        return Score(transaction_id=transaction.id, probability=probability)
    return Score(
        transaction_id=transaction.id,
        probability=probability,
        base_points=base,
        reasons=tuple(Reason(feature=name, text=text, points=points) for name, (points, text) in parts.items()),
        counterfactuals=(Counterfactual(feature="amount", text=f"the amount had been {usual / 100:.2f} or less"),),
        features={"amount": transaction.amount_cents / 100, "ratio": ratio, "terminal_frauds": terminal["frauds"]},
    )


def _is_image(encoded: bytes) -> bool:
    return len(encoded) > 200 and (encoded[128:132] == b"DICM" or encoded.startswith(IMAGE_MARKS))


def _draft(study: StudyInput) -> Draft:
    if not 1 <= len(study.images) <= MAX_IMAGES:
        raise InputError(f"study {study.key}: 1 to {MAX_IMAGES} images, not {len(study.images)}")
    images = [image for image in study.images if _is_image(image.encoded)]
    if not images:
        return Draft(study_key=study.key, declined=True, declined_reason="None of the files is a readable image.")
    effusion = hashlib.sha256(images[0].encoded).digest()[0] >= 128
    state = FindingState.POSITIVE if effusion else FindingState.NEGATIVE
    said = "There is a small left pleural effusion." if effusion else "No pleural effusion."
    end = "Small left pleural effusion." if effusion else "No acute cardiopulmonary abnormality."
    return Draft(
        study_key=study.key,
        declined=False,
        findings=(Finding(name="Pleural Effusion", state=state, probability=0.9 if effusion else 0.1),),
        sentences=(
            Sentence(
                section=Section.FINDINGS,
                text=said,
                confidence=0.9,
                finding="Pleural Effusion",
                image_key=images[0].key,
                box=(0.6, 0.6, 0.3, 0.3) if effusion else None,
            ),
            Sentence(section=Section.IMPRESSION, text=end, confidence=0.8),
        ),
    )
