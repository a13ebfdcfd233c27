"""Pages of the registry: versions by kind, one version, promotion and rollback."""

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from apps.accounts.api import Role, actor_of
from apps.core import clock
from apps.core.errors import AppError
from apps.core.permissions import role_required
from apps.registry import rules, selectors, services
from apps.registry.forms import PromoteForm
from apps.registry.models import ModelVersion
from ml_core.contracts import ModelKind

_HISTORY_ROWS = 10


@role_required(Role.ADMIN, Role.AUDITOR)
@require_GET
def model_list(request: HttpRequest) -> HttpResponse:
    """Every version by kind, the one that serves now, and who served when."""
    kinds = [_kind_block(kind) for kind in ModelKind]
    context = {"kinds": kinds, "may_promote": request.user.role == Role.ADMIN}
    return render(request, "registry/model_list.html", context)


@role_required(Role.ADMIN, Role.AUDITOR)
@require_GET
def model_detail(request: HttpRequest, digest: str) -> HttpResponse:
    """One version: card, metrics beside the champion's, lineage, when it served."""
    try:
        model = services.model_view(digest=digest, by=actor_of(request), at=clock.now())
    except selectors.ModelNotFoundError as error:
        raise Http404 from error
    context = _beside_champion(model) | {
        "promotions": selectors.promotion_list(model=model)[:_HISTORY_ROWS],
        "may_promote": request.user.role == Role.ADMIN,
    }
    return render(request, "registry/model_detail.html", context)


@role_required(Role.ADMIN)
@require_http_methods(["GET", "POST"])
def model_promote(request: HttpRequest, digest: str) -> HttpResponse:
    """Ask for confirmation, then make this version the champion of its kind."""
    try:
        model = selectors.model_row(digest)
    except selectors.ModelNotFoundError as error:
        raise Http404 from error
    form = PromoteForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            note = form.cleaned_data["note"]
            services.model_promote(digest=digest, by=actor_of(request), at=clock.now(), note=note)
        except AppError as error:
            messages.error(request, error.message)
        else:
            title = rules.kind_title(model.kind).lower()
            messages.success(request, f"{model.name} serves now: the next {title} carries digest {digest[:8]}.")
        return redirect("registry:model_detail", digest=digest)
    status = 422 if form.is_bound else 200
    return render(request, "registry/model_promote.html", _beside_champion(model) | {"form": form}, status=status)


def _kind_block(kind: ModelKind) -> dict[str, object]:
    models = list(selectors.model_rows(kind=kind))
    names = rules.headline(kind=kind, metrics=[model.metrics for model in models])
    rows = [{"model": model, "figures": [rules.figure(model.metrics.get(name)) for name in names]} for model in models]
    return {
        "kind": kind,
        "columns": [rules.label(name) for name in names],
        "rows": rows,
        "champion": next((model for model in models if model.is_champion), None),
        "previous": selectors.model_previous(kind),
        "promotions": selectors.promotion_list(kind=kind)[:_HISTORY_ROWS],
    }


def _beside_champion(model: ModelVersion) -> dict[str, object]:
    champion = selectors.model_rows(kind=ModelKind(model.kind)).filter(state="champion").exclude(pk=model.pk).first()
    # Manifests state figures of different test sets under equal names; a run's page compares on one.
    metrics = champion.metrics if champion else None
    return {
        "model": model,
        "champion": champion,
        "comparison": rules.compare(candidate=model.metrics, champion=metrics, judged=False),
    }
