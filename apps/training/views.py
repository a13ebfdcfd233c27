"""Pages of training: runs, starting one, watching one."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.accounts.api import Role, actor_of
from apps.core import clock
from apps.core.errors import AppError
from apps.core.permissions import role_required
from apps.registry import api as registry
from apps.training import selectors
from apps.training.forms import RunForm
from apps.training.models import Run, RunState
from apps.training.services import runs
from ml_core.contracts import ModelKind

_PAGE_ROWS = 25


@role_required(Role.ADMIN)
@require_GET
def run_list(request: HttpRequest) -> HttpResponse:
    """All runs, the newest first, by kind and state; refreshed while one is open."""
    kind, state = request.GET.get("kind", ""), request.GET.get("state", "")
    page = Paginator(selectors.run_list(kind=kind, state=state), _PAGE_ROWS).get_page(request.GET.get("page"))
    context = {
        "page": page,
        "kinds": list(ModelKind),
        "states": RunState.choices,
        "kind": kind,
        "state": state,
        "live": any(run.is_open for run in page),
        "now": clock.now(),
    }
    return render(request, "training/_run_rows.html" if request.htmx else "training/run_list.html", context)


@role_required(Role.ADMIN)
@require_http_methods(["GET", "POST"])
def run_new(request: HttpRequest) -> HttpResponse:
    """The form that starts a run."""
    form = RunForm(request.POST if request.method == "POST" else None, today=clock.now())
    if request.method == "POST" and form.is_valid():
        run = runs.run_start(**form.run_fields(), by=actor_of(request), at=clock.now())
        messages.success(request, f"Run {run.pk} is queued.")
        return redirect("training:run_detail", run_id=run.pk)
    return render(request, "training/run_new.html", {"form": form}, status=422 if form.is_bound else 200)


@role_required(Role.ADMIN)
@require_GET
def run_detail(request: HttpRequest, run_id: int) -> HttpResponse:
    """One run: progress, charts, log, specification, result."""
    try:
        run = runs.run_read(run_id=run_id, by=actor_of(request), at=clock.now())
    except runs.RunNotFoundError as error:
        raise Http404 from error
    return render(request, "training/run_detail.html", _status(run) | _result(run) | {"charts": selectors.charts(run)})


@role_required(Role.ADMIN)
@require_GET
def run_status(request: HttpRequest, run_id: int) -> HttpResponse:
    """The live part of a run's page, asked for every two seconds; when the run ends the whole page is loaded again."""
    run = _run(run_id)
    answer = render(request, "training/_run_status.html", _status(run))
    if not run.is_open or str(run.attempt) != request.GET.get("attempt"):
        answer["HX-Refresh"] = "true"
    return answer


@role_required(Role.ADMIN)
@require_GET
def run_charts(request: HttpRequest, run_id: int) -> JsonResponse:
    """The charts' series as JSON."""
    charts = selectors.charts(_run(run_id))
    body = [
        {
            "key": chart.key,
            "latest": chart.latest,
            "steps": chart.steps,
            "names": [name for name, _values in chart.series],
            "series": [values for _name, values in chart.series],
        }
        for chart in charts
    ]
    return JsonResponse({"charts": body})


@role_required(Role.ADMIN)
@require_POST
def run_cancel(request: HttpRequest, run_id: int) -> HttpResponse:
    """End a run."""
    return _change(request, run_id, runs.run_cancel, done="Run {} is cancelled; its process is being stopped.")


@role_required(Role.ADMIN)
@require_POST
def run_retry(request: HttpRequest, run_id: int) -> HttpResponse:
    """A new attempt of a run."""
    return _change(request, run_id, runs.run_retry, done="Run {} is queued again.")


def _change(request: HttpRequest, run_id: int, service: object, *, done: str) -> HttpResponse:
    try:
        service(run_id=run_id, by=actor_of(request), at=clock.now())
    except runs.RunNotFoundError as error:
        raise Http404 from error
    except AppError as error:
        messages.error(request, error.message)
    else:
        messages.success(request, done.format(run_id))
    return redirect("training:run_detail", run_id=run_id)


def _run(run_id: int) -> Run:
    run = selectors.run_list().filter(pk=run_id).first()
    if run is None:
        raise Http404
    return run


def _status(run: Run) -> dict[str, object]:
    now = clock.now()
    entered = selectors.stages(run)
    heartbeat = (now - run.heartbeat_at).total_seconds() if run.heartbeat_at else None
    return {
        "run": run,
        "percent": round(100 * run.progress),
        "left_s": selectors.seconds_left(run, now=now),
        "heartbeat_s": heartbeat,
        "stages": entered[:-1] if run.state == RunState.RUNNING else entered,
        "stages_to_come": max(0, run.stage_of - run.stage_index) if run.is_open else 0,
        "notes": selectors.log_notes(run),
    }


def _result(run: Run) -> dict[str, object]:
    """Candidate beside champion, both measured by the run on the same rows."""
    if run.state != RunState.DONE:
        return {}
    champion = run.metrics.get("champion")
    return {
        "comparison": registry.compare(candidate=run.metrics.get("candidate", {}), champion=champion),
        "compared": champion is not None,
        "produced": registry.model_get(run.digest),
    }
