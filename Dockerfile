# Build: docker build -t tidegate .      Run: docker run --shm-size=256m -v models:/models -v state:/var/lib/tidegate -p 127.0.0.1:8080:8080 tidegate
FROM python:3.12-slim AS build
WORKDIR /build
COPY requirements.lock ./
RUN python -m venv /opt/tidegate && /opt/tidegate/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY loaders loaders
COPY shadow shadow
COPY bench bench
# Bytecode that is taken as it is: the image writes none, and every process would compile all modules at its start.
RUN python -m compileall -q --invalidation-mode unchecked-hash gateway loaders shadow bench

FROM python:3.12-slim
ENV ORT_DISABLE_TELEMETRY=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/src PATH=/opt/tidegate/bin:$PATH
COPY --from=build /opt/tidegate /opt/tidegate
COPY --from=build /build /opt/src
RUN useradd --uid 10001 --create-home tidegate && install -d -o tidegate -m 0700 /var/lib/tidegate && install -d /models
USER 10001
WORKDIR /var/lib/tidegate
VOLUME /var/lib/tidegate
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "gateway.cli"]
CMD ["serve", "/models", "--state-dir", "/var/lib/tidegate", "--set", "data.host=0.0.0.0"]
