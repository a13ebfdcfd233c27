"""The search box of the fraud half."""

from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_safe

from apps.accounts.api import actor_of
from apps.core import clock
from apps.core.permissions import role_required
from apps.fraud import rules
from apps.fraud.forms import SearchForm
from apps.fraud.services import queue as queue_services
from apps.fraud.views.queue import READERS


@role_required(*READERS)
@require_safe
def search(request: HttpRequest) -> HttpResponse:
    """Alerts, cards, terminals and transactions that `q` names; one alert alone opens at once."""
    form = SearchForm(request.GET)
    text = form.text()
    found = queue_services.search_read(text=text, by=actor_of(request), at=clock.now()) if text else None
    if (number := rules.card_number_in(text)) and found is not None and not found.transactions:
        # A page's address is kept by browsers and proxies: a card number must not stay in it. (The id of a
        # transaction may look like one, and is no secret.)
        token = rules.card_token(number, key=settings.TOKEN_KEY)
        return redirect(f"{request.path}?{urlencode({'q': token[:16]})}")
    if found is not None and found.exact is not None:
        return redirect("fraud:alert", alert_id=found.exact.pk)
    context = {"form": form, "text": text, "found": found}
    return render(request, "fraud/search.html", context, status=200 if form.is_valid() else 422)
