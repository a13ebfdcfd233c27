"""Settings that every environment shares: apps, middleware, templates, database, language."""

import dj_database_url

from config.env import ROOT, env_home, env_kept_secret, env_secret

HOME = env_home()
VAR = HOME / "var"
VAR.mkdir(parents=True, exist_ok=True)

SECRET_KEY = env_kept_secret("SECRET_KEY", VAR / "secret_key")
TOKEN_KEY = env_kept_secret("TOKEN_KEY", VAR / "token_key")  # keys the tokens that stand for card numbers
DEBUG = False
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", "testserver"]
ENVIRONMENT_NAME = "development"  # shown in the top bar

INSTALLED_APPS = [
    "config.apps.AssayAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django_htmx",
    "django_filters",
    "django_celery_beat",
    "ninja",  # its OpenAPI page from our own static files
    "axes",
    "apps.core",
    "apps.accounts",
    "apps.audit",
    "apps.engine",
    "apps.registry",
    "apps.fraud",
    "apps.radiology",
    "apps.training",
    "config.apps.ConfigConfig",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "apps.accounts.middleware.time_zone_middleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "platform" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "config.nav.context",
            ],
        },
    },
]

DATABASES = {
    "default": dj_database_url.parse(env_secret("DATABASE_URL", f"sqlite:///{VAR / 'assay.sqlite3'}"), conn_max_age=0)
}
if DATABASES["default"]["ENGINE"].endswith("postgresql"):
    DATABASES["default"]["OPTIONS"] = {"pool": {"min_size": 0, "max_size": 8, "timeout": 10}}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
    }

AUTH_USER_MODEL = "accounts.User"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en-gb"
USE_I18N = True
USE_TZ = True
TIME_ZONE = "UTC"
LOGIN_URL = "accounts:sign_in"
LOGIN_REDIRECT_URL = "core:home"
LOGOUT_REDIRECT_URL = "accounts:sign_in"
HOME_BY_ROLE = {  # where core:home sends a person
    "analyst": "/fraud/",
    "senior_analyst": "/fraud/",
    "radiologist": "/radiology/",
    "admin": "/training/",
    "auditor": "/audit/",
    "integrator": "/profile/",
}
