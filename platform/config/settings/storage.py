"""Static files and private storage."""

from config.env import ROOT, env_home

STATIC_URL = "/static/"
STATICFILES_DIRS = [ROOT / "platform" / "static"]
STATIC_ROOT = env_home() / "var" / "staticfiles"
STATIC_ROOT.mkdir(parents=True, exist_ok=True)
MEDIA_ROOT = env_home() / "var" / "private"  # never served by URL; views stream from it
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
