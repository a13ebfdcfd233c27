"""Settings of the test environment."""

from .base import *  # noqa: F403
from .engine import *  # noqa: F403
from .observability import *  # noqa: F403
from .queues import *  # noqa: F403
from .security import *  # noqa: F403
from .storage import *  # noqa: F403

ENVIRONMENT_NAME = "test"
ENGINE = "fake"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
CELERY_TASK_ALWAYS_EAGER = True
CELERY_TASK_EAGER_PROPAGATES = True
AXES_ENABLED = False
