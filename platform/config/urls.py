"""All URLs of the platform."""

from django.contrib import admin
from django.urls import include, path

from apps.fraud.views.score_api import api as scoring_api
from config import health

urlpatterns = [
    path("health/live", health.live, name="health_live"),
    path("health/ready", health.ready, name="health_ready"),
    path("", include("apps.core.urls")),
    path("", include("apps.accounts.urls")),
    path("api/v1/", scoring_api.urls),
    path("fraud/", include("apps.fraud.urls")),
    path("radiology/", include("apps.radiology.urls")),
    path("training/", include("apps.training.urls")),
    path("models/", include("apps.registry.urls")),
    path("audit/", include("apps.audit.urls")),
    path("admin/", admin.site.urls),
]
