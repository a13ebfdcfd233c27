"""URLs of the audit app."""

from django.urls import path

from apps.audit import views

app_name = "audit"
urlpatterns = [
    path("", views.search, name="search"),
    path("verify/", views.verify, name="verify"),
    path("export.csv", views.export, name="export"),
    path("<int:sequence>/", views.event, name="event"),
]
