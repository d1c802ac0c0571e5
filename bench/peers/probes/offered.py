"""Offered: what a product has no way of doing, and the page that shows what it has instead.

A probe that cannot ask a product (or finds nothing that it could ask: an address, a page of metrics, a log) is looked
up here: with an entry the cell says "not offered" and names the page, without one it stays what it is. An entry hides
neither a yes nor a no that was measured: it stands beside that one, as does what else is known of it.
"""

from __future__ import annotations

from bench.peers.peer import Source

_TRITON = "https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs"
_MLSERVER = "https://docs.seldon.ai/mlserver"
_SELDON = "https://docs.seldon.ai/seldon-core-2"
_LITSERVE = "https://lightning.ai/docs/litserve"
_BENTO = "https://docs.bentoml.com/en/latest"
_RAY = "https://docs.ray.io/en/latest/serve"
_ORTS = "https://github.com/kibae/onnxruntime-server/blob/main/README.md"

_JSON_ONLY = Source(
    "inputs are JSON with content types", "Content Types", f"{_MLSERVER}/user-guide/content-type"
)
_LITSERVER = Source(
    "a timeout is the server's, for all requests", "LitServer", f"{_LITSERVE}/api-reference/litserver"
)
_LOGGER = Source("it counts nothing by itself; a Logger of the author's can, and can mount its page",
                 "Logging and monitoring", f"{_LITSERVE}/features/logger")  # fmt: skip
_SERVICES = Source("a timeout is the service's, for all requests", "Services",
                   f"{_BENTO}/build-with-bentoml/services.html")  # fmt: skip
_RAY_TIMEOUT = Source("a timeout is the server's, for all requests", "Best practices in production",
                      f"{_RAY}/production-guide/best-practices.html")  # fmt: skip
_MULTIPLE = Source("a server has several APIs, of several versions, too, each at an address of its own, and no shares"
                   " of traffic between them", "Multiple API endpoints on one port",
                   f"{_LITSERVE}/features/multiple-apis-single-port")  # fmt: skip
_NO_DEADLINE = Source("a request's timeout is of the extension schedule_policy; it has the extensions of its author",
                      "MLServer Settings", f"{_MLSERVER}/api-reference/settings")  # fmt: skip
_NO_METRICS = Source("its options have no metrics", "README, Options", f"{_ORTS}#options")
_NO_TIMEOUT = Source("its options have no timeout", "README, Options", f"{_ORTS}#options")

_OIP = "Open Inference Protocol"
_TWO = "Two versions at once"
_LOG = "The log of predictions"

_ENTRIES: dict[str, dict[str, Source]] = {
    "triton": {
        _TWO: Source("its repository has versions and policies, and no shares of traffic between them",
                     "Model Repository", f"{_TRITON}/user_guide/model_repository.html"),
        "v1 :predict": Source("its HTTP protocol is KServe's v2 with extensions",
                              "Inference protocols", f"{_TRITON}/customization_guide/inference_protocols.html"),
    },
    "mlserver": {
        _TWO: Source("shares and mirrors are experiments of Seldon Core 2, a product around it for Kubernetes",
                     "Experiments", f"{_SELDON}/user-guide/experiment"),
        _LOG: Source("its settings have metrics, traces of calls, and Kafka for requests that come by it and their"
                     " answers; no log of predictions",
                     "MLServer Settings", f"{_MLSERVER}/api-reference/settings"),
        "binary tensors": _JSON_ONLY,
        "raw tensors": _JSON_ONLY,
        "raw binary request": _JSON_ONLY,
        "v1 :predict": Source("it speaks the V2 protocol", "MLServer", f"{_MLSERVER}"),
        "deadline while waiting": _NO_DEADLINE,
        "deadline while running": _NO_DEADLINE,
    },
    "litserve": {
        _OIP: Source("its form of requests is the author's own; specifications it has are OpenAI's",
                     "LitAPI", f"{_LITSERVE}/api-reference/litapi"),
        _TWO: _MULTIPLE,
        "deadline while waiting": _LITSERVER,
        "deadline while running": _LITSERVER,
        "metrics count answers": _LOGGER,
        "metrics count refusals": _LOGGER,
        "latency by version": _LOGGER,
    },
    "bentoml": {
        _OIP: Source("its endpoints are the service's own, made from its signatures", "Services",
                     f"{_BENTO}/build-with-bentoml/services.html"),
        _TWO: Source("canaries are of its cloud", "Create canary Deployments",
                     f"{_BENTO}/scale-with-bentocloud/deployment/canary-deployments.html"),
        "deadline while waiting": _SERVICES,
        "deadline while running": _SERVICES,
        "latency by version": Source("its metrics name service and endpoint; a service has one version", "Metrics",
                                     f"{_BENTO}/build-with-bentoml/observability/metrics.html"),
    },
    "ray-serve": {
        _OIP: Source("its endpoints are the deployment's own", "Set Up FastAPI and HTTP", f"{_RAY}/http-guide.html"),
        _TWO: Source("an update replaces the version that an application has", "Updating Applications In-Place",
                     f"{_RAY}/advanced-guides/inplace-updates.html"),
        "deadline while waiting": _RAY_TIMEOUT,
        "deadline while running": _RAY_TIMEOUT,
        "latency by version": Source("its metrics name application, deployment and replica", "Monitor Your Application",
                                     f"{_RAY}/monitoring.html"),
    },
    "onnxruntime-server": {
        _OIP: Source("it has a REST API of its own", "README, API", f"{_ORTS}#api"),
        _TWO: Source("clients name the version; it has no shares", "README, API", f"{_ORTS}#api"),
        _LOG: Source("its options have an access log, and no log of predictions", "README, Log options",
                     f"{_ORTS}#log-options"),
        "raw tensors": Source("its REST API is JSON", "README, API", f"{_ORTS}#api"),
        "deadline while waiting": _NO_TIMEOUT,
        "deadline while running": _NO_TIMEOUT,
        "metrics count answers": _NO_METRICS,
        "metrics count refusals": _NO_METRICS,
        "latency by version": _NO_METRICS,
    },
}  # fmt: skip


_RESTART = Source("a server has one version, and another one is a restart", "Services",
                  f"{_BENTO}/build-with-bentoml/services.html")  # fmt: skip
_LITRESTART = Source("its APIs are those that it was started with, and another version is a restart", "LitServer",
                     f"{_LITSERVE}/api-reference/litserver")  # fmt: skip

_KNOWN: dict[str, dict[str, Source]] = {
    "tidegate": {
        "deadline while waiting": Source("what runs take is learnt from runs: behind the first one that is so long, a"
                                         " request is refused when that one ends", "Status", "status.md"),
    },
    "triton": {
        "a killed worker comes back": Source("that its Python backend does so was taken out", "issue 8604",
                                             "https://github.com/triton-inference-server/server/issues/8604"),
        "deadline while waiting": Source("a queue's timeout is looked at when an instance is free", "Batchers",
                                         f"{_TRITON}/user_guide/batcher.html"),
    },
    "ray-serve": {
        "outlives a broken version": Source("an update beside what runs, to which traffic goes once it is healthy, is"
                                            " KubeRay's", "RayService Zero-Downtime Incremental Upgrades",
                                            "https://docs.ray.io/en/latest/cluster/kubernetes/user-guides/"
                                            "rayservice-incremental-upgrade.html"),
    },
    "onnxruntime-server": {
        "taken up without a failed request": Source("a session's address names its version: clients move to another"
                                                    " one, or it is ended and made again", "README, Run the server",
                                                    f"{_ORTS}#run-the-server"),
    },
    "litserve": {
        "taken up without a failed request": _LITRESTART,
        "outlives a broken version": _LITRESTART,
        "a body of 8 GiB announced": Source("max_payload_size, off unless it is set, counts what has come", "LitServer",
                                            f"{_LITSERVE}/api-reference/litserver"),
    },
    "bentoml": {
        "taken up without a failed request": _RESTART,
        "outlives a broken version": _RESTART,
        "outlives its receiver": Source("OpenTelemetry's processor, which it sends with, holds 2,048 records by default"
                                        " and drops the others", "Environment Variable Specification",
                                        "https://opentelemetry.io/docs/specs/otel/configuration/"
                                        "sdk-environment-variables/"),
    },
}  # fmt: skip


def known_of(peer: str, name: str) -> Source | None:
    """What is known of a product's no, or half of a yes, in a row."""
    return _KNOWN.get(peer, {}).get(name)


def not_offered(peer: str, group: str, name: str) -> Source | None:
    """The page for a product's row (or its whole group); None where it claims nothing."""
    entries = _ENTRIES.get(peer, {})
    return entries.get(name) or entries.get(group)
