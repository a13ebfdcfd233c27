"""Tasks of the platform itself."""

from celery import shared_task

from config import workers


@shared_task(name="config.gpu.champions_load")
def champions_load(**_: object) -> None:
    """Let the gpu lane's process hold the champions of now, so that a promotion does not wait for the first request."""
    workers.champions_load(hostname=workers.hostname())
