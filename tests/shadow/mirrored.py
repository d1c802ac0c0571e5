"""A gateway's log with a mirror on it: routes, predictions, and what the shadows said."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway import config
from gateway.audit.event import Control, ModelFacts, Prediction, RouteFacts, Shadow, Tensor
from gateway.audit.recorder import Recorder
from gateway.audit.spool_feed import SpoolFeed
from gateway.process import Context
from shadow.mirror import Mirror, Parts
from shadow.replicas import Load, Replicas
from shadow.resume import Place, Saver
from tests.gateway.audit.sim import GATEWAY_ID, Log, settle

UNIT = "00000000000000ff"


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Stage:
    """One state directory: a worker, control and a recorder in this process, and a mirror when asked."""

    def __init__(self, state_dir: Path, models: Path) -> None:
        self.log = Log(state_dir)
        self.models = models
        self.worker = self.log.owner("worker", 1 << 20)
        self.control = self.log.owner("control")
        self.recorder: Recorder = self.log.recorder(segment_bytes=1 << 20)
        self.clock = Clock()
        self.stop = threading.Event()

    def mirror(
        self,
        *,
        load: Load | None = None,
        place: Place | None = None,
        ring_bytes: int = 1 << 20,
        capture: int = 65536,
    ) -> Mirror:
        """A mirror that begins at the start of the log."""
        place = place or Place()
        writer = self.log.owner("mirror", ring_bytes)
        path = self.log.state_dir / "mirror" / "positions.json"
        if load is None:
            replicas = Replicas.of_repository(self.models, ["CPUExecutionProvider"], capture)
        else:
            replicas = Replicas(load, capture)
        parts = Parts(
            SpoolFeed(self.log.spool, place.feed), writer, replicas, Saver(path, writer, place.outputs)
        )
        return Mirror(parts, GATEWAY_ID, place, set(), self.stop, self.clock)

    def route(
        self, revision: int, *shadows: str, model: str = "linear", primary: str = "1", sample_bp: int = 10_000
    ):
        """Log a route with these versions as shadows."""
        event = route_event(revision, *shadows, model=model, primary=primary, sample_bp=sample_bp)
        assert self.control.append_events([event]) is not None

    def predict(self, values: Any, **facts: Any) -> str:
        """Log a prediction on X = values; returns its id."""
        first_seq = self.worker.append_events([prediction(values, **facts)])
        assert first_seq is not None
        return self.worker.event_id(first_seq)

    def settle(self) -> None:
        """Everything appended is on disk."""
        settle(self.recorder)

    def mirrored(self, mirror: Mirror) -> list[Shadow]:
        """Let the mirror read all there is; what it said since the log began."""
        self.settle()
        while mirror.step() and not mirror._held:
            pass
        self.settle()
        return self.answers()

    def answers(self) -> list[Shadow]:
        """Shadow events on disk."""
        return [event for event in self.log.read() if isinstance(event, Shadow)]


def context_of(log: Log, models: Path) -> Context:
    """What the supervisor hands to its children."""
    settings = [f"state_dir={log.state_dir}", "audit.segment_bytes=65536"]
    loaded, _ = config.load(None, settings, {})
    return Context(
        config=config.encode(loaded),
        models=str(models),
        state_dir=str(log.state_dir),
        gateway_id=GATEWAY_ID,
        ring_dir=str(log.ring_dir),
    )


def route_event(
    revision: int,
    *shadows: str,
    model: str = "linear",
    primary: str = "1",
    sample_bp: int = 10_000,
    at_ns: int = 1,
) -> Control:
    """A control event with a whole route."""
    variants: list[dict[str, Any]] = [
        {"name": "primary", "version": primary, "role": "primary", "weight_bp": 10_000}
    ]
    variants += [
        {"name": f"next{version}", "version": version, "role": "shadow", "sample_bp": sample_bp}
        for version in shadows
    ]
    after = {"model": model, "revision": revision, "variants": variants}
    return Control(
        kind="route", gateway_id=GATEWAY_ID, model=model, revision=revision, after=after, at_ns=at_ns
    )


def tensor(name: str, values: Any, dtype: Any = np.float32) -> Tensor:
    """A tensor as the log holds it."""
    array = np.asarray(values, dtype)
    datatypes = {"f4": "FP32", "f8": "FP64", "i8": "INT64"}
    return Tensor(name, datatypes[array.dtype.str[1:]], array.shape, array.tobytes())


def prediction(values: Any, **facts: Any) -> Prediction:
    """A done prediction of linear/1 at revision 1, but for `facts`."""
    revision, version = facts.pop("revision", 1), facts.pop("version", "1")
    unit, model = facts.pop("unit", UNIT), facts.pop("model", "linear")
    inputs: Sequence[Tensor] = facts.pop("inputs", None) or [tensor("X", values)]
    base = Prediction(
        kind="done",
        received_ns=5,
        done_ns=6,
        rows=inputs[0].shape[0],
        route=RouteFacts(revision, 1, "primary", "primary", 10_000, "weight", unit),
        model=ModelFacts(model, version, "ab" * 32),
        inputs=list(inputs),
    )
    for name, value in facts.items():
        setattr(base, name, value)
    return base


def saved(stage: Stage) -> dict[str, Any]:
    """What positions.json holds."""
    found: dict[str, Any] = json.loads((stage.log.state_dir / "mirror" / "positions.json").read_bytes())
    return found


def array_of(found: Tensor) -> np.ndarray:
    """A logged tensor's values."""
    dtype = {"FP32": "<f4", "INT64": "<i8"}[found.datatype]
    return np.frombuffer(found.data or b"", dtype).reshape(found.shape)
