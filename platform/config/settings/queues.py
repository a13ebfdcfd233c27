"""Celery: broker, lanes, limits, what beat sends. Task names say their lane: <app>.<lane>.<verb>."""

from config.env import env_home, env_str

LANES = ("io", "cpu", "gpu", "train")
LANE_LIMIT_S = {"io": 120, "cpu": 600, "gpu": 300, "train": 120}  # hard limit L of a lane

CELERY_BROKER_URL = env_str("REDIS_URL", f"redis+socket://{env_home() / 'var' / 'broker.sock'}")
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ALWAYS_EAGER = False
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_DEFAULT_QUEUE = "io"
CELERY_TASK_ROUTES = {f"*.{lane}.*": {"queue": lane} for lane in LANES}
CELERY_TASK_ANNOTATIONS = ["config.limits.LaneLimits"]
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": int(1.1 * max(LANE_LIMIT_S.values()))}
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_TIMEZONE = "UTC"


def _every(task: str, *, seconds: float) -> dict[str, object]:
    """An entry whose message expires before the next is sent: a lane that was away does not wake up to a heap."""
    return {"task": task, "schedule": seconds, "options": {"expires": seconds}}


CELERY_BEAT_SCHEDULE = {
    "gpu: hold the champions of now": _every("config.gpu.champions_load", seconds=20.0),
    "fraud: send again what waits too long": _every("fraud.io.requeue_stale", seconds=60.0),
    "fraud: learn verdicts that stand": _every("fraud.gpu.learn_labels", seconds=300.0),
    "radiology: read what waits": _every("radiology.io.sweep", seconds=60.0),
    "radiology: draft what waits": _every("radiology.gpu.draft", seconds=60.0),
    "training: follow what runs": _every("training.io.follow", seconds=2.0),
}
