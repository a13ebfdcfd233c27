# Builds the DICOM viewer and the page assets; the result is a folder to copy from or to mount:
#   docker build -f docker/viewer.Dockerfile --output type=local,dest=out .
FROM node:24.11-bookworm-slim AS build
WORKDIR /build
COPY apps/core/assets apps/core/assets
COPY apps/radiology/viewer apps/radiology/viewer
RUN cd apps/core/assets && npm ci --no-audit --no-fund && npm run build \
 && cd ../../radiology/viewer && npm ci --no-audit --no-fund && npm run build

FROM scratch
COPY --from=build /build/apps/core/static/vendor /vendor
COPY --from=build /build/apps/radiology/static/viewer /viewer
