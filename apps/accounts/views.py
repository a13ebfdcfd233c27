"""Sign-in, sign-out, profile, theme and one's own API keys."""

from django.contrib import messages
from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_http_methods, require_POST

from apps.accounts import services
from apps.accounts.api import actor_of
from apps.accounts.contracts import Role
from apps.accounts.forms import ApiKeyForm, ProfileForm
from apps.accounts.models import User
from apps.core import clock
from apps.core.permissions import role_required


class SignInView(auth_views.LoginView):
    """Sign in with name and password; django-axes locks the pair of name and address after five failures."""

    template_name = "accounts/sign_in.html"
    redirect_authenticated_user = True


sign_in = SignInView.as_view()
sign_out = auth_views.LogoutView.as_view()


@login_required
@require_http_methods(["GET", "POST"])
def profile(request: HttpRequest) -> HttpResponse:
    """How pages look to this person, and her API keys if she integrates a system."""
    form = ProfileForm(request.POST or None, instance=request.user)
    if request.method == "POST" and form.is_valid():
        services.profile_update(user=_person(request), **form.cleaned_data)
        messages.success(request, "Saved.")
        return redirect("accounts:profile")
    return render(request, "accounts/profile.html", {"form": form, "key_form": ApiKeyForm()})


@login_required
@require_POST
def theme(request: HttpRequest) -> HttpResponse:
    """Set light, dark or auto and return to the page."""
    form = ProfileForm({"theme": request.POST.get("theme"), "time_zone": request.user.time_zone}, instance=request.user)
    if not form.is_valid():
        return HttpResponse("theme must be auto, light or dark", status=400)
    services.profile_update(user=_person(request), **form.cleaned_data)
    back = request.POST.get("next", "")
    return redirect(back if url_has_allowed_host_and_scheme(back, allowed_hosts=None) else "core:home")


@role_required(Role.INTEGRATOR, Role.ADMIN)
@require_POST
def api_key_create(request: HttpRequest) -> HttpResponse:
    """Make a key for oneself and show its secret, once."""
    form = ApiKeyForm(request.POST)
    if not form.is_valid():
        context = {"form": ProfileForm(instance=request.user), "key_form": form}
        return render(request, "accounts/profile.html", context, status=422)
    key, secret = services.api_key_create(
        user=_person(request), name=form.cleaned_data["name"], by=actor_of(request), at=clock.now()
    )
    return render(request, "accounts/api_key_created.html", {"key": key, "secret": secret})


@role_required(Role.INTEGRATOR, Role.ADMIN)
@require_POST
def api_key_revoke(request: HttpRequest, key_id: int) -> HttpResponse:
    """Stop one of one's own keys."""
    key = get_object_or_404(request.user.api_keys, pk=key_id)
    services.api_key_revoke(key=key, by=actor_of(request), at=clock.now())
    messages.success(request, f"{key.name} no longer works.")
    return redirect("accounts:profile")


def _person(request: HttpRequest) -> User:
    """The signed-in user, for the type checker: the decorators let nobody else through."""
    assert isinstance(request.user, User)
    return request.user
