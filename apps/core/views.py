"""Where a person lands after signing in."""

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect


@login_required
def home(request: HttpRequest) -> HttpResponse:
    """Go to the list of the person's role (settings.HOME_BY_ROLE)."""
    return redirect(settings.HOME_BY_ROLE[request.user.role])
