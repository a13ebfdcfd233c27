#!/bin/sh
# Starts the web server; `migrate` prepares the database and the static files instead, once for each release.
set -eu
cd /app
case "${1:-serve}" in
  migrate)
    python manage.py migrate --no-input
    exec python manage.py registry_sync
    ;;
  serve)
    python manage.py collectstatic --no-input --verbosity 0
    exec uvicorn config.asgi:application --host 0.0.0.0 --port 8000 --workers "${WEB_WORKERS:-2}" \
      --lifespan off --proxy-headers --forwarded-allow-ips "${FORWARDED_ALLOW_IPS:-127.0.0.1}" --no-server-header
    ;;
  *) exec "$@" ;;
esac
