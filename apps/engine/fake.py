"""FakeEngine: a torch-free engine for tests that keeps the whole contract; nothing that it says is worth anything."""

import hashlib
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_core.contracts import (
    Counterfactual,
    Draft,
    DraftRequest,
    DraftResult,
    EntityKind,
    EntityState,
    Finding,
    FindingState,
    ImageInput,
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
from ml_core.errors import ArtifactError, EngineMissing, InputError, StateError

BASE_POINTS = 5.0
LEAST_IMAGE_BYTES = 256
FINDINGS = ("Pleural Effusion", "Pneumothorax", "Cardiomegaly", "Consolidation")
_Memory = dict[tuple[EntityKind, str], dict[str, Any]]


_NAME = "fake"


class FakeEngine:
    """Scores grow with the amount over the card's own mean and with the terminal's known frauds; all in the states."""

    def score(self, request: ScoreRequest, /) -> ScoreResult:
        """Score transactions; returns changed states too."""
        started = time.perf_counter()
        _need(request.model, kind=ModelKind.FRAUD)
        if request.engine not in ("", _NAME):
            raise EngineMissing(f"engine: {request.engine!r} does not serve here, {_NAME!r} does")
        order = [(item.at, item.id) for item in request.transactions]
        if order != sorted(order):
            raise InputError("transactions: must be sorted by at, ties by id")
        memory = {(state.kind, state.key): _memory(state) for state in request.states}
        for label in request.labels:
            _learn(memory, label=label)
        scores = tuple(
            _score(memory, transaction=item, explain_from=request.explain_from) for item in request.transactions
        )
        states = _changed(memory, before=request.states)
        return ScoreResult(
            model_digest=request.model.digest,
            scores=scores,
            states=states,
            seconds=time.perf_counter() - started,
            engine=_NAME,
        )

    def learn_labels(
        self, model: ModelKey, states: tuple[EntityState, ...], labels: tuple[Label, ...]
    ) -> tuple[EntityState, ...]:
        """Put labels that became known into the states of their cards and terminals; returns the changed states."""
        _need(model, kind=ModelKind.FRAUD)
        memory = {(state.kind, state.key): _memory(state) for state in states}
        for label in labels:
            _learn(memory, label=label)
        return _changed(memory, before=states)

    def draft(self, request: DraftRequest, /) -> DraftResult:
        """Draft one report a study: what it says follows from the bytes of the images alone."""
        started = time.perf_counter()
        _need(request.model, kind=ModelKind.REPORT)
        drafts = tuple(_draft(study) for study in request.studies)
        return DraftResult(model_digest=request.model.digest, drafts=drafts, seconds=time.perf_counter() - started)

    def describe(self, folder: str, /) -> ModelDescription:
        """Read a real manifest and verify every digest, as ml_core.artifacts does (which apps may not import)."""
        root = Path(folder)
        try:
            body = json.loads((root / "manifest.json").read_text())
            digest = body.pop("digest")
            _verify(root, body=body, digest=digest)
            return ModelDescription(
                kind=ModelKind(body["kind"]),
                digest=digest,
                folder=folder,
                name=body["name"],
                recipe=body["recipe"],
                created=body["created"],
                parameters=body["parameters"],
                size_bytes=sum(entry["bytes"] for entry in body["files"].values()),
                teacher_digest=body["teacher_digest"],
                data_digest=body.get("data_digest", ""),
                git_revision=body.get("git_revision", ""),
                licence=body["licence"],
                metrics=body["metrics"],
                card=(root / "card.md").read_text(),
            )
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{folder} is not an artifact: {error!r}") from error

    def load(self, model: ModelKey, /) -> None:
        """Verify that the folder holds exactly this model."""
        described = self.describe(model.folder)
        if (described.digest, described.kind) != (model.digest, model.kind):
            raise ArtifactError(f"{model.folder} holds {described.kind} {described.digest}, not {model.digest}")


def _need(model: ModelKey, *, kind: ModelKind) -> None:
    if model.kind is not kind:
        raise InputError(f"model: a {kind} model is needed, not {model.kind}")


def _verify(root: Path, *, body: dict[str, Any], digest: str) -> None:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if hashlib.sha256(canonical.encode()).hexdigest() != digest:
        raise ArtifactError(f"{root / 'manifest.json'} does not match its digest")
    for name, entry in body["files"].items():
        if hashlib.sha256((root / name).read_bytes()).hexdigest() != entry["sha256"]:
            raise ArtifactError(f"{root / name} does not match its digest")


# ---------------------------------------------------------------- fraud


def _memory(state: EntityState) -> dict[str, Any]:
    if not state.data:
        return {"version": 1, "n": 0, "cents": 0, "frauds": 0, "waiting": []}
    try:
        memory = json.loads(state.data)
        version = memory["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"state of {state.kind} {state.key!r} is damaged") from error
    if version != 1:
        raise StateError(f"state of {state.kind} {state.key!r} has version {version!r}")
    return memory


def _changed(memory: _Memory, *, before: Iterable[EntityState]) -> tuple[EntityState, ...]:
    after = (
        EntityState(
            kind=state.kind, key=state.key, data=json.dumps(memory[state.kind, state.key], sort_keys=True).encode()
        )
        for state in before
    )
    fresh = {(state.kind, state.key): json.dumps(_memory(state), sort_keys=True).encode() for state in before}
    return tuple(state for state in after if state.data != fresh[state.kind, state.key])


def _of(memory: _Memory, kind: EntityKind, key: str) -> dict[str, Any]:
    if (kind, key) not in memory:
        raise InputError(f"states: {kind} {key!r} is missing")
    return memory[kind, key]


def _learn(memory: _Memory, *, label: Label) -> None:
    """A label waits in its terminal's state until it is known, and then counts there."""
    _of(memory, EntityKind.CARD, label.card)
    _of(memory, EntityKind.TERMINAL, label.terminal)["waiting"].append([label.known_at, int(label.fraud)])


def _score(memory: _Memory, *, transaction: Transaction, explain_from: float) -> Score:
    card = _of(memory, EntityKind.CARD, transaction.card)
    terminal = _of(memory, EntityKind.TERMINAL, transaction.terminal)
    known = [fraud for at, fraud in terminal["waiting"] if at <= transaction.at]
    terminal["waiting"] = [item for item in terminal["waiting"] if item[0] > transaction.at]
    terminal["frauds"] += sum(known)
    mean = card["cents"] / card["n"] if card["n"] else float(transaction.amount_cents)
    ratio = transaction.amount_cents / max(mean, 1.0)
    amount_points = 60.0 * (1.0 - math.exp(-max(0.0, ratio - 1.0) / 2.0))
    terminal_points = 30.0 * (1.0 - math.exp(-float(terminal["frauds"])))
    points = BASE_POINTS + amount_points + terminal_points
    card["n"] += 1
    card["cents"] += transaction.amount_cents
    terminal["n"] += 1
    if transaction.label is not None and transaction.label_known_at is not None:
        terminal["waiting"].append([transaction.label_known_at, int(transaction.label)])
    if points / 100.0 < explain_from:
        return Score(transaction_id=transaction.id, probability=points / 100.0)
    return Score(
        transaction_id=transaction.id,
        probability=points / 100.0,
        base_points=BASE_POINTS,
        reasons=(
            Reason(feature="amount", text=f"Amount is {ratio:.1f} times the card's mean", points=amount_points),
            Reason(
                feature="terminal", text=f"{terminal['frauds']} known frauds at the terminal", points=terminal_points
            ),
        ),
        counterfactuals=(Counterfactual(feature="amount", text=f"An amount of {mean / 100:.2f} or less"),),
        features={"amount_ratio": ratio, "terminal_frauds": float(terminal["frauds"])},
    )


# ---------------------------------------------------------------- radiology


def _draft(study: StudyInput) -> Draft:
    if not study.images:
        return Draft(study_key=study.key, declined=True, declined_reason="The study has no images.")
    for image in study.images:
        if not _is_image(image.encoded):
            reason = f"Image {image.key} cannot be read as DICOM, PNG or JPEG, so no draft was written."
            return Draft(study_key=study.key, declined=True, declined_reason=reason)
    seed = hashlib.sha256(b"".join(hashlib.sha256(image.encoded).digest() for image in study.images)).digest()
    findings = tuple(_finding(name, byte=seed[number]) for number, name in enumerate(FINDINGS))
    told = [item for item in findings if item.state is not FindingState.ABSENT]
    sentences = [_sentence(item, image=study.images[0], byte=seed[-1 - i]) for i, item in enumerate(told)]
    positive = [item.name.lower() for item in findings if item.state is FindingState.POSITIVE]
    closing = f"Findings suggest {' and '.join(positive)}." if positive else "No acute finding."
    sentences.append(Sentence(section=Section.IMPRESSION, text=closing, confidence=0.8))
    return Draft(study_key=study.key, declined=False, findings=findings, sentences=tuple(sentences))


def _is_image(encoded: bytes) -> bool:
    known = encoded.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or encoded[128:132] == b"DICM"
    return known and len(encoded) >= LEAST_IMAGE_BYTES


def _finding(name: str, *, byte: int) -> Finding:
    probability = byte / 255.0
    if probability >= 0.7:
        state = FindingState.POSITIVE
    elif probability >= 0.6:
        state = FindingState.UNCERTAIN
    else:
        state = FindingState.NEGATIVE if probability >= 0.2 else FindingState.ABSENT
    return Finding(name=name, state=state, probability=probability)


def _sentence(finding: Finding, *, image: ImageInput, byte: int) -> Sentence:
    name = finding.name.lower()
    text = {
        FindingState.POSITIVE: f"There is {name}.",
        FindingState.UNCERTAIN: f"Possible {name}.",
        FindingState.NEGATIVE: f"No {name}.",
    }[finding.state]
    box = (0.1 + byte / 1024, 0.2, 0.3, 0.25) if finding.state is not FindingState.NEGATIVE else None
    return Sentence(
        section=Section.FINDINGS,
        text=text,
        confidence=max(finding.probability, 1.0 - finding.probability),
        finding=finding.name,
        image_key=image.key if box else "",
        box=box,
    )
