"""The Django project. Importing it makes the Celery application current, so that the web process can enqueue."""

from config.celery import app as celery_app

__all__ = ["celery_app"]
