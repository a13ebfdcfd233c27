"""Settings of the demo: everything on one machine, for one person's eyes, with accounts whose password is printed."""

from config.env import env_bool, env_str

from .base import *  # noqa: F403
from .engine import *  # noqa: F403
from .observability import *  # noqa: F403
from .queues import *  # noqa: F403
from .security import *  # noqa: F403
from .storage import *  # noqa: F403

ENVIRONMENT_NAME = "demo"
DEMO_PASSWORD = env_str("DEMO_PASSWORD", "assay-demo")
DEMO_SMALL = env_bool("DEMO_SMALL", False)  # minutes of set-up instead of tens of minutes
