"""Settings of the dev environment."""

from .base import *  # noqa: F403
from .engine import *  # noqa: F403
from .observability import *  # noqa: F403
from .queues import *  # noqa: F403
from .security import *  # noqa: F403
from .storage import *  # noqa: F403

ENVIRONMENT_NAME = "dev"
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = True
