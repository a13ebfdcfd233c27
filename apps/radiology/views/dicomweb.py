"""Pixels and metadata for the viewer, in the shape of DICOMweb (PS3.18), for signed-in people alone."""

from django.core.files.storage import default_storage
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET

from apps.accounts.api import actor_of
from apps.core.permissions import role_required
from apps.radiology.models import Instance
from apps.radiology.permissions import READERS, instance_for
from apps.radiology.tables import instance_metadata
from apps.radiology.views.opening import opened

_CACHE = "private, max-age=3600, immutable"


@role_required(*READERS)
@require_GET
def metadata(request: HttpRequest, study: str, series: str, instance: str) -> HttpResponse:
    """What the viewer must know to show the frames, as DICOM JSON (PS3.18 annex F)."""
    found = _instance(request, study, series, instance)
    response = JsonResponse([instance_metadata(found)], safe=False, content_type="application/dicom+json")
    return _guarded(response)


@role_required(*READERS)
@require_GET
def frames(request: HttpRequest, study: str, series: str, instance: str, number: int) -> HttpResponse:
    """One display frame (from 1): raw little-endian samples, as the metadata describes them."""
    found = _instance(request, study, series, instance)
    if not found.displayable or not 1 <= number <= found.frames:
        raise Http404
    with default_storage.open(found.frames_key) as file:
        file.seek((number - 1) * found.frame_bytes)
        content = file.read(found.frame_bytes)
    return _guarded(HttpResponse(content, content_type="application/octet-stream"))


@role_required(*READERS)
@require_GET
def thumbnail(request: HttpRequest, study: str, series: str, instance: str) -> HttpResponse:
    """A small picture for the series strip."""
    found = _instance(request, study, series, instance)
    if not found.thumb_key:
        raise Http404
    return _guarded(FileResponse(default_storage.open(found.thumb_key), content_type="image/png"))


def _instance(request: HttpRequest, study: str, series: str, instance: str) -> Instance:
    found = instance_for(actor_of(request), study_uid=study, series_uid=series, sop_uid=instance)
    opened(request, found.series.study, again=False)
    return found


def _guarded(response: HttpResponse | FileResponse) -> HttpResponse:
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = _CACHE
    response["Vary"] = "Cookie"
    return response  # type: ignore[return-value]
