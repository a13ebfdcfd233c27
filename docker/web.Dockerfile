# Web server, io and cpu workers, beat. No torch.
FROM node:24.11-bookworm-slim AS assets
WORKDIR /build
COPY apps/core/assets apps/core/assets
COPY apps/radiology/viewer apps/radiology/viewer
RUN cd apps/core/assets && npm ci --no-audit --no-fund && npm run build \
 && cd ../../radiology/viewer && npm ci --no-audit --no-fund && npm run build

FROM python:3.11.14-slim-bookworm
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONPATH=/app:/app/platform \
    DJANGO_SETTINGS_MODULE=config.settings.prod \
    LOG_FORMAT=json \
    ASSAY_HOME=/data
WORKDIR /app
RUN groupadd --gid 10001 assay \
 && useradd --uid 10001 --gid assay --no-create-home --shell /usr/sbin/nologin assay \
 && install -d -o assay -g assay /data
COPY constraints.txt constraints.txt
COPY platform/requirements.txt platform/requirements.txt
RUN pip install -c constraints.txt -r platform/requirements.txt
COPY manage.py manage.py
COPY platform platform
COPY apps apps
COPY ml_core ml_core
COPY docker/entrypoints /entrypoints
COPY --from=assets /build/apps/core/static/vendor apps/core/static/vendor
COPY --from=assets /build/apps/radiology/static/viewer apps/radiology/static/viewer
USER assay
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
ENTRYPOINT ["/entrypoints/web.sh"]
