"""The admin site: one sign-in page for everything, and 404 for people who have no business there."""

from django.contrib.admin import AdminSite
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse


class AssayAdminSite(AdminSite):
    site_header = "Assay administration"
    site_title = "Assay"
    index_title = "Records"
    site_url = "/"

    def login(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponse:
        """Send the signed-out to the one sign-in page; a signed-in stranger does not learn that the page exists."""
        if request.user.is_authenticated and not self.has_permission(request):
            raise Http404
        return redirect_to_login(request.GET.get("next", "/admin/"))
