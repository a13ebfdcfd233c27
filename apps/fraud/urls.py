"""URLs of the fraud app's pages."""

from django.urls import path

from apps.fraud.views import alert, queue, search

app_name = "fraud"
urlpatterns = [
    path("", queue.queue, name="queue"),
    path("mine/", queue.mine, name="mine"),
    path("closed/", queue.closed, name="closed"),
    path("search/", search.search, name="search"),
    path("next/", queue.claim_next, name="claim_next"),
    path("views/", queue.view_save, name="view_save"),
    path("views/<int:view_id>/delete/", queue.view_delete, name="view_delete"),
    path("alerts/<int:alert_id>/", alert.alert, name="alert"),
    path("alerts/<int:alert_id>/claim/", alert.claim, name="alert_claim"),
    path("alerts/<int:alert_id>/release/", alert.release, name="alert_release"),
    path("alerts/<int:alert_id>/verdict/", alert.dispose, name="alert_dispose"),
    path("alerts/<int:alert_id>/undo/", alert.undo, name="alert_undo"),
    path("alerts/<int:alert_id>/reopen/", alert.reopen, name="alert_reopen"),
    path("alerts/<int:alert_id>/notes/", alert.note, name="alert_note"),
    path("alerts/<int:alert_id>/recompute/", alert.recompute, name="alert_recompute"),
]
