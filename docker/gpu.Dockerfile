# Worker of the gpu lane, and of the train lane: the platform with the engine. Runs on the CPU where there is no GPU.
FROM python:3.11.14-slim-bookworm
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONPATH=/app:/app/platform \
    DJANGO_SETTINGS_MODULE=config.settings.prod \
    LOG_FORMAT=json \
    ASSAY_HOME=/data
WORKDIR /app
# gcc: torch.compile and Triton build their launchers with it
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 assay \
 && useradd --uid 10001 --gid assay --no-create-home --shell /usr/sbin/nologin assay \
 && install -d -o assay -g assay /data
COPY constraints.txt constraints.txt
COPY platform/requirements.txt platform/requirements.txt
COPY ml_core/requirements.txt ml_core/requirements-engines.txt ml_core/
# https://download.pytorch.org/whl/cpu makes a far smaller image for machines without a GPU
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install -c constraints.txt --index-url "${TORCH_INDEX}" torch==2.13.0 \
 && pip install -c constraints.txt -r platform/requirements.txt -r ml_core/requirements.txt -r ml_core/requirements-engines.txt
COPY manage.py manage.py
COPY platform platform
COPY apps apps
COPY ml_core ml_core
COPY docker/entrypoints /entrypoints
USER assay
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 CMD ["/entrypoints/worker-health.sh"]
ENTRYPOINT ["/entrypoints/worker.sh"]
CMD ["gpu"]
