"""Writes of the registry: registering artifacts, promoting, rolling back, taking in the shipped models."""

import shutil
import uuid
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.db import transaction

from apps.accounts.api import Actor
from apps.audit.api import AuditEvent, record
from apps.core.errors import AppError, NotAllowedError
from apps.engine.port import get_engine
from apps.registry.contracts import ModelRef, SyncReport
from apps.registry.models import ModelState, ModelVersion, Promotion
from apps.registry.selectors import model_get, model_previous, model_ref, model_row
from ml_core.contracts import ModelDescription, ModelKind
from ml_core.errors import EngineError


class ArtifactRefusedError(AppError):
    """The engine refuses the artifact: absent, incomplete or altered."""

    code = "artifact_invalid"
    status = 422


def model_register(*, folder: str, by: Actor, at: datetime) -> ModelRef:
    """Verify the artifact in `folder`, copy it into the registry's store and make it a candidate; twice is once.

    The copy is what serves: a run's folder may be cleared, and a checkout may bring other bytes to the same path.
    """
    description = _describe(folder)
    known = ModelVersion.objects.filter(digest=description.digest).first()
    if known is not None:
        return model_ref(known)
    fields = _fields(description, folder=_store(description), by=by, at=at)
    ModelVersion(digest=description.digest, **fields).full_clean(validate_unique=False, validate_constraints=False)
    with transaction.atomic():
        model, created = ModelVersion.objects.get_or_create(digest=description.digest, defaults=fields)
        if created:
            _audit("model.register", model=model, by=by, at=at, kind=model.kind, name=model.name)
    return model_ref(model)


@transaction.atomic
def model_promote(*, digest: str, by: Actor, at: datetime, note: str = "") -> ModelRef:
    """Make a version the champion of its kind from `at` on; the one that served retires. Twice is once.

    The next score or draft uses it: services ask for the champion per batch. Raises ArtifactRefusedError when the
    stored artifact no longer matches its digest.
    """
    kind = model_row(digest).kind
    rows = {row.digest: row for row in ModelVersion.objects.select_for_update().filter(kind=kind).order_by("id")}
    model = rows[digest]
    if model.is_champion:
        return model_ref(model)
    if _describe(model.folder).digest != digest:
        raise ArtifactRefusedError(f"The stored artifact of {model} is not the one that was registered.")
    before = next((row for row in rows.values() if row.is_champion), None)
    open_promotion = Promotion.objects.select_for_update().filter(kind=kind, served_to__isnull=True).first()
    if open_promotion is not None:
        at = max(at, open_promotion.served_from)  # clocks of two machines may differ; spans never overlap
        open_promotion.served_to = at
        open_promotion.save(update_fields=["served_to"])
    if before is not None:
        before.state = ModelState.RETIRED
        before.save(update_fields=["state"])
    model.state = ModelState.CHAMPION
    model.save(update_fields=["state"])
    promotion = Promotion(kind=kind, model=model, served_from=at, user_id=by.user_id, by=by.name, note=note.strip())
    promotion.full_clean(validate_constraints=False)
    promotion.save()
    _audit("model.promote", model=model, by=by, at=at, kind=kind, before=before.digest if before else "", note=note)
    return model_ref(model)


def model_rollback(*, kind: ModelKind, by: Actor, at: datetime, note: str = "") -> ModelRef:
    """Promote the version that served before the champion."""
    previous = model_previous(kind)
    if previous is None:
        raise NotAllowedError(f"No other {kind} model has served, so there is nothing to roll back to.")
    return model_promote(digest=previous.key.digest, by=by, at=at, note=note or "rolled back")


def shipped_sync(*, root: Path, by: Actor, at: datetime) -> SyncReport:
    """Register every artifact under `root`; promote the first of each kind that has no champion. Idempotent."""
    registered: list[str] = []
    known: list[str] = []
    promoted: list[str] = []
    refused: list[tuple[str, str]] = []
    for manifest in sorted(root.glob("*/manifest.json")):
        before = set(ModelVersion.objects.values_list("digest", flat=True))
        try:
            ref = model_register(folder=str(manifest.parent), by=by, at=at)
        except ArtifactRefusedError as error:
            refused.append((manifest.parent.name, error.message))
            continue
        (known if ref.key.digest in before else registered).append(ref.key.digest)
        if not ModelVersion.objects.filter(kind=ref.key.kind, state=ModelState.CHAMPION).exists():
            model_promote(digest=ref.key.digest, by=by, at=at, note="first of its kind, shipped with Assay")
            promoted.append(ref.key.digest)
    return SyncReport(
        registered=tuple(registered), known=tuple(known), promoted=tuple(promoted), refused=tuple(refused)
    )


def model_view(*, digest: str, by: Actor, at: datetime) -> ModelVersion:
    """The row for its page, with the reading of it on record."""
    model_get(digest)
    with transaction.atomic():
        model = model_row(digest)
        _audit("model.read", model=model, by=by, at=at)
    return model


def _describe(folder: str) -> ModelDescription:
    try:
        return get_engine().describe(folder)
    except EngineError as error:
        raise ArtifactRefusedError(f"The artifact cannot be used: {error}") from error


def _store(description: ModelDescription) -> str:
    """Copy an artifact to models/<digest> in private storage, whole or not at all; returns the folder to serve from."""
    source = Path(description.folder)
    if not source.is_dir():  # an engine without files (the fake of the tests) describes folders that do not exist
        return description.folder
    target = Path(settings.MEDIA_ROOT) / "models" / description.digest
    if target.is_dir() and _describe(str(target)).digest == description.digest:
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{description.digest[:16]}-{uuid.uuid4().hex}")
    shutil.copytree(source, partial)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    return str(target)


def _fields(description: ModelDescription, *, folder: str, by: Actor, at: datetime) -> dict[str, object]:
    return {
        "kind": description.kind,
        "folder": folder,
        "name": description.name,
        "recipe": description.recipe,
        "metrics": dict(description.metrics),
        "parameters": description.parameters,
        "size_bytes": description.size_bytes,
        "teacher_digest": description.teacher_digest,
        "data_digest": description.data_digest,
        "git_revision": description.git_revision,
        "licence": description.licence,
        "card": description.card,
        "built": description.created,
        "created_at": at,
        "created_by": by.name,
    }


def _audit(verb: str, *, model: ModelVersion, by: Actor, at: datetime, **detail: object) -> None:
    record(AuditEvent(actor=by, verb=verb, object_type="model", object_id=model.digest, at=at, detail=detail))
