"""Batch upload: the page, a batch's files as they arrive, and the quarantine."""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.accounts.api import actor_of
from apps.core import clock
from apps.core.permissions import role_required
from apps.radiology import selectors
from apps.radiology.forms import UploadForm
from apps.radiology.models import Batch
from apps.radiology.permissions import READERS, WRITERS
from apps.radiology.services import intake


@role_required(*WRITERS)
@require_http_methods(["GET", "POST"])
def upload(request: HttpRequest) -> HttpResponse:
    """The upload page; a POST is the plain form (no JavaScript) with all files at once."""
    form = UploadForm(request.POST or None, request.FILES or None)
    if request.method == "POST" and form.is_valid():
        batch = _batch(request, priority=form.cleaned_data["priority"])
        for file in form.cleaned_data["files"]:
            intake.file_receive(batch=batch, name=file.name or "", content=file, at=clock.now())
        intake.batch_begin(batch=batch)
        return redirect("radiology:batch", uid=batch.uid)
    context = {"form": form, "batches": selectors.batches_recent()}
    return render(request, "radiology/upload.html", context, status=400 if form.errors else 200)


@role_required(*WRITERS)
@require_POST
def batch_create(request: HttpRequest) -> HttpResponse:
    """Open a batch for a script that then posts the files; answers with its addresses."""
    priority = request.POST.get("priority", "2")
    batch = _batch(request, priority=int(priority) if priority in ("0", "1", "2") else 2)
    files = reverse("radiology:batch_files", args=[batch.uid])
    return JsonResponse({"page": reverse("radiology:batch", args=[batch.uid]), "files": files}, status=201)


@role_required(*WRITERS)
@require_POST
def batch_files(request: HttpRequest, uid: UUID) -> HttpResponse:
    """Receive some files of a batch and have them read."""
    batch = _batch_or_404(uid)
    if batch.created_by_id != request.user.pk:
        raise Http404
    names = request.POST.getlist("name")
    files = request.FILES.getlist("files")
    for index, file in enumerate(files):
        name = names[index] if index < len(names) else file.name or ""
        intake.file_receive(batch=batch, name=name, content=file, at=clock.now())
    intake.batch_begin(batch=batch)
    return JsonResponse({"received": len(files)}, status=202)


@role_required(*READERS)
@require_GET
def batch(request: HttpRequest, uid: UUID) -> HttpResponse:
    """A batch: counts, and each file with its result and reason. Polled as a fragment while files wait."""
    context = selectors.batch_progress(batch=_batch_or_404(uid))
    fragment = request.headers.get("HX-Request") == "true"
    return render(request, "radiology/_batch_files.html" if fragment else "radiology/batch.html", context)


@role_required(*READERS)
@require_GET
def quarantine(request: HttpRequest) -> HttpResponse:
    """Files that were refused or contradict what is stored; their bytes wait for a decision."""
    page = Paginator(selectors.quarantine(), 50).get_page(request.GET.get("page"))
    return render(request, "radiology/quarantine.html", {"page": page, "may_write": request.user.role in WRITERS})


@role_required(*WRITERS)
@require_POST
def dismiss(request: HttpRequest, pk: int) -> HttpResponse:
    """Delete the bytes of one quarantined file."""
    if intake.file_dismiss(file_id=pk, by=actor_of(request), at=clock.now()):
        messages.success(request, "Dismissed: the bytes are deleted, the entry in the batch stays.")
    else:
        messages.info(request, "That file is not in quarantine any more.")
    return redirect("radiology:quarantine")


def _batch(request: HttpRequest, *, priority: int) -> Batch:
    at = clock.now()
    name = f"{at:%d %b %H:%M}, {request.user.get_username()}"
    return intake.batch_create(name=name, source="upload", by=actor_of(request), at=at, priority=priority)


def _batch_or_404(uid: UUID) -> Any:
    found = selectors.batch_get(uid=str(uid))
    if found is None:
        raise Http404
    return found
