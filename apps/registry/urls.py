"""URLs of the registry app."""

from django.urls import path

from apps.registry import views

app_name = "registry"
urlpatterns = [
    path("", views.model_list, name="model_list"),
    path("<slug:digest>/", views.model_detail, name="model_detail"),
    path("<slug:digest>/promote/", views.model_promote, name="model_promote"),
]
