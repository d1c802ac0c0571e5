"""What there is and how it is: health, server, models, their metadata, readiness, configuration and statistics.

Starlette door -> **metadata** -> serving. Readiness and statistics are facts of the whole fleet, read from shared
memory: whichever worker is asked, the answer is the same.

Sources: Open Inference Protocol, REST; its model configuration and statistics extensions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import __version__
from gateway.api.outgoing import json_response
from gateway.entry import Entry
from gateway.errors import ModelNotReady, NotFound, UnknownModel
from gateway.serving import Models
from gateway.statistics import Duration, version_statistics
from gateway.version import Version
from loaders.repository import is_version
from loaders.signature import TensorSpec

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""Only what works; `model_repository` besides, where load and unload are on."""
MODEL, VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
_SERVICES = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


class Metadata:
    """Handlers of every GET of the protocol.

    Args:
        loads: whether the repository's load and unload are on.
    """

    def __init__(self, models: Models, *, loads: bool) -> None:
        self._models = models
        self._extensions = sorted((*EXTENSIONS, *(("model_repository",) if loads else ())))

    def routes(self) -> list[Route]:
        """Their addresses. A model of the name `stats` has no metadata: the address is taken."""
        get = ["GET"]
        return [
            Route("/", self.alive, methods=get),
            Route("/v2/health/live", self.live, methods=get),
            Route("/v2/health/ready", self.ready, methods=get),
            Route("/v2", self.server, methods=get),
            Route("/v2/", self.server, methods=get),
            Route("/v2/models", self.models, methods=get),
            Route("/v2/models/stats", self.stats, methods=get),
            *(
                Route(base + end, handler, methods=get)
                for base in (MODEL, VERSION)
                for end, handler in (
                    ("", self.metadata),
                    ("/ready", self.model_ready),
                    ("/config", self.config),
                    ("/stats", self.stats),
                )
            ),
        ]

    async def alive(self, request: Request) -> Response:
        """The process answers, in the words of KServe's v1."""
        return json_response({"status": "alive"})

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """Every primary can answer."""
        ready = self._models.ready
        return json_response({"ready": ready, "live": True}, 200 if ready else 503)

    async def server(self, request: Request) -> Response:
        """Who answers and what it can."""
        return json_response({"name": "tidegate", "version": __version__, "extensions": self._extensions})

    async def models(self, request: Request) -> Response:
        """Names of all models."""
        return json_response({"models": self._models.names})

    async def metadata(self, request: Request) -> Response:
        """A model's inputs and outputs."""
        entry = entry_of(self._models, request)
        version = version_of(entry, request)
        return json_response(
            {
                "name": entry.model,
                "versions": sorted(entry.states, key=int),
                "platform": "onnx_onnxv1",
                "inputs": [described(spec) for spec in version.signature.inputs],
                "outputs": [described(spec) for spec in version.signature.outputs],
                "properties": {
                    "version": version.version,
                    "batchable": str(version.batchable).lower(),
                    "runtime": version.facts.runtime or "",
                    "tree_sha256": version.facts.tree_sha256 or "",
                },
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """Whether a model, or one version, can answer in every worker that serves."""
        entry = entry_of(self._models, request)
        check_ready(self._models, version_of(entry, request))
        return json_response({"name": entry.model, "ready": True})

    async def config(self, request: Request) -> Response:
        """The version's configuration, in the form of Triton's ModelConfig."""
        entry = entry_of(self._models, request)
        return json_response(model_config(entry, version_of(entry, request)))

    async def stats(self, request: Request) -> Response:
        """Counters of every version asked for, summed over the workers."""
        names = self._models.names
        if "model" in request.path_params:
            names = [entry_of(self._models, request).model]
        asked = version_text(request)
        listed = [held for held in self._held(names) if asked in {None, held[1]}]
        if asked is not None and not listed:
            raise UnknownModel(names[0], asked)
        counted = []
        for model, version, slot in listed:
            counted.append(self._stats_of(model, version, slot))
            # Hundreds of versions: predictions do not wait for them.
            await asyncio.sleep(0)
        return json_response({"model_stats": counted})

    def _held(self, names: list[str]) -> Iterator[tuple[str, str, int]]:
        for name in names:
            entry = self._models.get(name)
            if entry is not None:
                for version in sorted(entry.states, key=int):
                    yield name, version, self._models.slot_of(name, version)

    def _stats_of(self, model: str, version: str, slot: int) -> dict[str, Any]:
        found = version_statistics(self._models.fleet, slot, (model, version))
        return {
            "name": model,
            "version": version,
            "last_inference": found.last_inference_ms,
            "inference_count": found.inference_count,
            "execution_count": found.execution_count,
            "inference_stats": {name: _duration(getattr(found, name)) for name in _SERVICES},
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": batch.batch_size,
                    "compute_input": _duration(batch.compute_input),
                    "compute_infer": _duration(batch.compute_infer),
                    "compute_output": _duration(batch.compute_output),
                }
                for batch in found.batches
            ],
            "memory_usage": [],
        }


def entry_of(models: Models, request: Request) -> Entry:
    """The model that a request's address names.

    Raises:
        UnknownModel: there is none.
    """
    name = request.path_params["model"]
    entry = models.get(name)
    if entry is None:
        raise UnknownModel(name[:256], version_text(request))
    return entry


def version_text(request: Request) -> str | None:
    """The version that a request's address names, None where it leaves the choice to us.

    Raises:
        NotFound: what stands there is no version.
    """
    asked: str | None = request.path_params.get("version")
    if asked is not None and not is_version(asked):
        msg = f"no such address: versions are positive integers, found {asked[:40]!r}"
        raise NotFound(msg)
    return asked


def version_of(entry: Entry, request: Request) -> Version:
    """The version that a request's address names, or the primary's.

    Raises:
        UnknownModel, ModelNotReady: no such version, or it cannot answer.
    """
    asked = version_text(request)
    if asked is not None:
        return entry.version(asked)
    entry.codec_of(None)
    assert entry.table is not None  # noqa: S101  set together with the codec
    return entry.version(entry.table.route.primary.version)


def check_ready(models: Models, version: Version) -> None:
    """Hold a version that is ready here against the other workers.

    Raises:
        ModelNotReady: one of them, though it serves, has it not.
    """
    state, reason = models.state_over_workers(version.model, version.version)
    if state != "ready":
        why = f" ({reason})" if reason else ""
        msg = f"model '{version.model}' version {version.version} is {state} in some workers{why}"
        raise ModelNotReady(msg)


def model_config(entry: Entry, version: Version) -> dict[str, Any]:
    """A version's configuration as the graph tells it; what its config.pbtxt says stands above that.

    Dimensions are without the batch's where the model is batched, as the form wants it.
    """
    skipped = 1 if version.batchable else 0
    made: dict[str, Any] = {
        "name": entry.model,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "runtime": "",
        "version_policy": {"specific": {"versions": sorted(map(int, entry.versions))}},
        "max_batch_size": version.max_rows if version.batchable else 0,
        "input": [_tensor_config(spec, skipped) for spec in version.signature.inputs],
        "output": [_tensor_config(spec, skipped) for spec in version.signature.outputs],
        "default_model_filename": "model.onnx",
        "parameters": {},
    }
    if version.batchable:
        made["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": version.queue_delay_us,
        }
    return {**made, **version.session.config}


def _tensor_config(spec: TensorSpec, skipped: int) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    dims = list(spec.shape[skipped:])
    made: dict[str, Any] = {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": dims or [1]}
    if not dims:
        # The form has no dims of length 0.
        made["reshape"] = {"shape": []}
    return made


def described(spec: TensorSpec) -> dict[str, Any]:
    """A declared tensor in the protocol's words."""
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
