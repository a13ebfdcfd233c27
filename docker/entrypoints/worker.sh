#!/bin/sh
# Starts one worker for the lanes given as the first word (`io,train`, `cpu`, `gpu`), or beat.
set -eu
cd /app
case "$1" in
  beat) exec celery -A config beat --pidfile= --loglevel=INFO ;;
  gpu) exec celery -A config worker -Q gpu -n "gpu@$(hostname)" --pool=prefork --concurrency=1 --loglevel=INFO ;;
  *) exec celery -A config worker -Q "$1" -n "${1%%,*}@$(hostname)" --pool=prefork --concurrency="${CONCURRENCY:-2}" --loglevel=INFO ;;
esac
