"""URLs of the radiology app."""

from django.urls import URLPattern

app_name = "radiology"
urlpatterns: list[URLPattern] = []
