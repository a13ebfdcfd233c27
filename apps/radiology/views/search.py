"""The search box of radiology."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET

from apps.accounts.api import actor_of
from apps.core import clock
from apps.core.permissions import role_required
from apps.radiology.forms import SearchForm
from apps.radiology.permissions import READERS
from apps.radiology.services import searching
from apps.radiology.tables import found_rows, list_row


@role_required(*READERS)
@require_GET
def search(request: HttpRequest) -> HttpResponse:
    """Patients, studies and reports that `q` names; one study alone opens at once."""
    form = SearchForm(request.GET)
    text, at = form.text(), clock.now()
    found = searching.studies_search(text=text, by=actor_of(request), at=at) if text else None
    if found is not None and found.exact is not None:
        return redirect("radiology:study", uid=found.exact.uid)
    context = {
        "form": form,
        "text": text,
        "found": found,
        "rows": [list_row(study, at=at) for study in found.studies] if found else [],
        "texts": found_rows(found.texts) if found else [],
    }
    return render(request, "radiology/search.html", context, status=200 if form.is_valid() else 422)
