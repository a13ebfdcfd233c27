"""Reads of the registry."""

from datetime import datetime

from django.db.models import OuterRef, Q, QuerySet, Subquery

from apps.core.errors import AppError
from apps.core.prepared import Prepared
from apps.registry.contracts import ModelRef
from apps.registry.models import ModelState, ModelVersion, Promotion
from ml_core.contracts import ModelKey, ModelKind

_COLUMNS = ("id", "kind", "digest", "folder", "name", "state", "created_at", "metrics")
_CHAMPION = Prepared(
    lambda kinds: ModelVersion.objects.filter(kind__in=kinds, state=ModelState.CHAMPION).values_list(*_COLUMNS)[:1]
)


class NoChampionError(AppError):
    """No version of this kind serves."""

    code = "no_champion"
    status = 503


class ModelNotFoundError(AppError):
    """No version has this digest."""

    code = "model_not_found"
    status = 404


def champion(kind: ModelKind) -> ModelRef:
    """The version that serves now, read from the database every time, so that no process serves a stale one."""
    found = _CHAMPION.rows([str(kind)])
    if not found:
        raise NoChampionError(f"No {kind} model serves yet: register one and promote it.")
    return model_ref(ModelVersion(**dict(zip(_COLUMNS, found[0], strict=True))))


def model_get(digest: str) -> ModelRef:
    """The version with this digest."""
    return model_ref(model_row(digest))


def model_row(digest: str) -> ModelVersion:
    """The row with this digest, for the registry's own pages."""
    model = ModelVersion.objects.filter(digest=digest).first()
    if model is None:
        raise ModelNotFoundError(f"No model with digest {digest[:12]} is registered.")
    return model


def model_rows(*, kind: ModelKind | None = None) -> QuerySet[ModelVersion]:
    """Versions, the newest first; each with `last_served_at`."""
    served = Promotion.objects.filter(model=OuterRef("pk")).order_by("-served_from").values("served_from")[:1]
    rows = ModelVersion.objects.annotate(last_served_at=Subquery(served))
    if kind is not None:
        rows = rows.filter(kind=kind)
    return rows.order_by("-created_at", "-id")


def model_list(*, kind: ModelKind | None = None) -> list[ModelRef]:
    """All versions, the newest first."""
    return [model_ref(model) for model in model_rows(kind=kind)]


def served_at(kind: ModelKind, at: datetime) -> ModelRef | None:
    """The version that served at a moment, or None."""
    promotion = (
        Promotion.objects.select_related("model")
        .filter(Q(served_to__isnull=True) | Q(served_to__gt=at), kind=kind, served_from__lte=at)
        .order_by("-served_from", "-id")
        .first()
    )
    return model_ref(promotion.model) if promotion else None


def promotion_list(*, kind: ModelKind | None = None, model: ModelVersion | None = None) -> QuerySet[Promotion]:
    """Who served when, the newest first."""
    rows = Promotion.objects.select_related("model").order_by("-served_from", "-id")
    if kind is not None:
        rows = rows.filter(kind=kind)
    return rows if model is None else rows.filter(model=model)


def model_previous(kind: ModelKind) -> ModelRef | None:
    """The version to roll back to: the last one that served before the champion and is not it."""
    open_promotion = Promotion.objects.filter(kind=kind, served_to__isnull=True).first()
    if open_promotion is None:
        return None
    last = (
        promotion_list(kind=kind)
        .filter(served_to__isnull=False)
        .exclude(model_id=open_promotion.model_id)
        .order_by("-served_to", "-id")
        .first()
    )
    return model_ref(last.model) if last else None


def model_ref(model: ModelVersion) -> ModelRef:
    """A row as the contract that crosses apps."""
    return ModelRef(
        id=model.pk,
        key=ModelKey(kind=ModelKind(model.kind), digest=model.digest, folder=model.folder),
        name=model.name,
        state=model.state,
        created_at=model.created_at,
        metrics=dict(model.metrics),
    )
