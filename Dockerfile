# One image for hubs and workers: `headrace hub` by default, `headrace worker` as the other command.
# docker build -t headrace .

FROM python:3.12.13-slim-bookworm AS build
WORKDIR /source
COPY LICENSE README.md pyproject.toml ./
COPY clients/python clients/python
COPY hub hub
COPY workers workers
# One command for both: the hub depends on the client, which must come from here and not from an index.
RUN python -m venv /opt/headrace \
    && /opt/headrace/bin/pip install --no-cache-dir --disable-pip-version-check ./clients/python .

FROM python:3.12.13-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin headrace
COPY --from=build /opt/headrace /opt/headrace
# Where the ledger of a compose file lies; its volume takes over owner and mode.
RUN install -d -o 10001 -g 10001 /var/lib/headrace
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
# For a hub. A worker has no port: what runs it overrides this (see docker-compose.yml).
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2).close()"]
CMD ["headrace", "hub", "--host", "0.0.0.0", "--port", "8080"]
