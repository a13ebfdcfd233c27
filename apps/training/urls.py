"""URLs of the training app."""

from django.urls import path

from apps.training import views

app_name = "training"
urlpatterns = [
    path("", views.run_list, name="run_list"),
    path("new/", views.run_new, name="run_new"),
    path("<int:run_id>/", views.run_detail, name="run_detail"),
    path("<int:run_id>/status/", views.run_status, name="run_status"),
    path("<int:run_id>/charts/", views.run_charts, name="run_charts"),
    path("<int:run_id>/cancel/", views.run_cancel, name="run_cancel"),
    path("<int:run_id>/retry/", views.run_retry, name="run_retry"),
]
