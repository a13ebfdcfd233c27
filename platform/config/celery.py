"""The Celery application of all lanes; config.tasks brings the checks of config.workers into every worker."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.dev")

app = Celery("assay")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf["CELERY_DB_REUSE_MAX"] = 10**9  # config.workers closes connections, not Celery after every task
app.autodiscover_tasks()
