"""Settings of the production environment: says which variable is missing, and serves over TLS alone."""

from config.env import env_bool, env_int, env_list, env_secret, env_str

from .base import *  # noqa: F403
from .engine import *  # noqa: F403
from .observability import *  # noqa: F403
from .queues import *  # noqa: F403
from .security import *  # noqa: F403
from .storage import *  # noqa: F403

ENVIRONMENT_NAME = env_str("ENVIRONMENT_NAME", "production")
SECRET_KEY = env_secret("SECRET_KEY")
TOKEN_KEY = env_secret("TOKEN_KEY")
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS")
CSRF_TRUSTED_ORIGINS = [f"https://{host}" for host in ALLOWED_HOSTS]
CELERY_BROKER_URL = env_secret("REDIS_URL")
env_secret("DATABASE_URL")  # base.py has read it; here it must not fall back to SQLite

SESSION_COOKIE_SECURE = True
CSRF_COOKIE_SECURE = True
SECURE_SSL_REDIRECT = env_bool("SECURE_SSL_REDIRECT", True)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")  # the TLS proxy of docker/compose.yml sets it
SECURE_HSTS_SECONDS = env_int("SECURE_HSTS_SECONDS", 31_536_000)
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SECURE_HSTS_PRELOAD = True
SECURE_REDIRECT_EXEMPT = [r"^health/"]  # probes come from inside, without TLS

STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
