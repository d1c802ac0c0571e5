"""Serving: what one worker serves, made from the snapshot and from what is loaded here.

snapshot (control) -> **Models** -> core. `Models.poll` compares the generation word in shared memory with
what this worker runs; on a change it reads the snapshot, asks the registry for the versions wanted, swaps
the routing tables, and only then publishes the generation it runs.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gateway import fleet as fleet_words
from gateway.audit.event import Model as ModelEvent
from gateway.audit.event import ModelFacts, Prediction
from gateway.audit.frame import encoder
from gateway.batching import Batch, CostModel, Inference, VersionQueue
from gateway.config import Batch as BatchConfig
from gateway.control import snapshot
from gateway.errors import GatewayError, ModelNotReady, SnapshotCorrupt, UnknownModel
from gateway.fleet import LATENCY0, LATENCY_BOUNDS_NS, Fleet
from gateway.recording import dropped_event
from gateway.routing import Assignment, RouteTable, compile_route, pinned
from loaders.session import Session

log = logging.getLogger("tidegate.worker")

CodecMaker = Callable[[str, Session], Any]
EncoderMaker = Callable[[str, str, Session], Any]


class Version:
    """One loaded version as the request path sees it: session, codec, queue, cost, counters."""

    def __init__(
        self, session: Session, codec: Any, encoder_: Any, batch: BatchConfig, words: memoryview
    ) -> None:
        self.model = session.model
        self.version = session.version
        self.session = session
        self.signature = session.signature
        self.batchable = session.batchable
        self.codec = codec
        self.encoder = encoder_
        self.max_rows = batch.max_rows if session.batchable else 1
        self.queue = VersionQueue(batch.max_rows, batchable=session.batchable)
        self.inline_ns = batch.inline_us * 1000 if session.inline_allowed else 0
        self.cost = CostModel(session.warm_cost_ns)
        self.facts = ModelFacts(
            name=session.model,
            version=session.version,
            tree_sha256=session.bundle.tree_sha256,
            config_sha256=session.bundle.config_sha256,
            reference_sha256=session.bundle.reference_sha256,
            runtime=session.runtime,
        )
        self.model_raw = msgspec.Raw(encoder.encode(self.facts))
        self.admitted = words[fleet_words.ADMITTED]
        self._recorded = words[fleet_words.RECORDED]
        self._words = words
        self.status_of: Callable[[GatewayError], int] = lambda exc: 500

    def publish_admitted(self) -> None:
        """Make the number of admissions visible before the run, so that a successor can tell what
        a kill aborted."""
        self._words[fleet_words.ADMITTED] = self.admitted
        self._words[fleet_words.QUEUED] = self.queue.rows

    def recorded(self, count: int) -> None:
        """So many admitted requests are in the log now (or stand in a gap)."""
        self._recorded += count
        self._words[fleet_words.RECORDED] = self._recorded

    def count(self, batch: Batch, now_ns: int, *, failed: bool) -> None:
        """One update of the metrics per run."""
        w = self._words
        n = len(batch.inferences)
        w[fleet_words.FAILED if failed else fleet_words.DONE] += n
        w[fleet_words.ROWS] += batch.rows
        w[fleet_words.BATCHES] += 1
        w[fleet_words.INFER_NS] += batch.ended_ns - batch.started_ns
        first, last = batch.inferences[0].received_ns, batch.inferences[-1].received_ns
        received = sum(i.received_ns for i in batch.inferences)
        w[fleet_words.QUEUE_NS] += max(n * batch.started_ns - received, 0)
        w[fleet_words.TOTAL_NS] += n * now_ns - received
        low = bisect_left(LATENCY_BOUNDS_NS, now_ns - last)
        high = bisect_left(LATENCY_BOUNDS_NS, now_ns - first)
        if low == high:
            w[LATENCY0 + low] += n
        else:
            for inference in batch.inferences:
                w[LATENCY0 + bisect_left(LATENCY_BOUNDS_NS, now_ns - inference.received_ns)] += 1
        w[fleet_words.QUEUED] = self.queue.rows

    def count_dropped(self, *, expired: bool) -> None:
        """A request that was cut away before it ran."""
        self._words[fleet_words.EXPIRED if expired else fleet_words.CANCELLED] += 1
        self.recorded(1)

    def dropped_event(self, inference: Inference, code: str, status: int) -> Prediction:
        """Its event."""
        return dropped_event(inference, self.facts, code, status)

    def json_body(
        self,
        inference: Inference,
        id_json: bytes,
        outputs: list[Any],
        texts: list[list[bytes]],
        row0: int,
    ) -> bytes:
        """A request's JSON reply from the run's row texts."""
        rows = inference.rows
        wanted = inference.wanted
        literals = self.encoder.literals(rows, outputs, wanted)
        parts = [literals[0], id_json]
        at = 1
        for i in range(len(texts)) if wanted is None else wanted:
            parts.append(literals[at])
            at += 1
            column = texts[i]
            if rows == 1 and self.batchable:
                parts.append(column[row0])
            elif self.batchable and rows:
                parts.append(b",".join(column[row0 : row0 + rows]))
            else:
                parts.append(column[0])
        parts.append(literals[at])
        return b"".join(parts)

    def binary_body(
        self, inference: Inference, id_json: bytes, outputs: list[Any], row0: int
    ) -> tuple[bytes, bytes]:
        """A reply with binary outputs: body and fields."""
        body, json_bytes = self.encoder.binary(inference, id_json, outputs, row0)
        fields = (
            b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
            b"content-length: %d\r\n" % (json_bytes, len(body))
        )
        return body, fields


class Entry:
    """One model: its versions here and its compiled route."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.versions: dict[str, Version] = {}
        self.states: dict[str, tuple[str, str | None]] = {}
        """Of every desired version: state word and reason."""
        self.table: RouteTable | None = None
        self.revision = 0
        self.generation = 0
        self._codec: Any = None
        self._pinned: dict[str, Assignment] = {}

    def codec_of(self, version: str | None) -> Any:
        """The codec of a version, or of the primary's.

        Raises:
            UnknownModel, ModelNotReady: no such version, or none is ready.
        """
        if version is not None:
            return self.version(version).codec
        if self._codec is None:
            msg = f"model '{self.model}' has no version that is ready: {self.why_not()}"
            raise ModelNotReady(msg)
        return self._codec

    def version(self, version: str) -> Version:
        """A version that is ready here.

        Raises:
            UnknownModel: not in the repository's loaded set.
            ModelNotReady: known, loading or failed; says which.
        """
        found = self.versions.get(version)
        if found is not None:
            return found
        if version not in self.states:
            raise UnknownModel(self.model, version)
        state, reason = self.states[version]
        why = f" ({reason})" if reason else ""
        msg = f"model '{self.model}' version {version} is {state}{why}"
        raise ModelNotReady(msg)

    def pinned(self, version: str) -> Assignment:
        """The one assignment object of requests that name this version."""
        made = self._pinned.get(version)
        if made is None:
            made = pinned(self.model, version, self.revision, self.generation)
            self._pinned[version] = made
        return made

    def why_not(self) -> str:
        """Why nothing can answer, in words."""
        if not self.states:
            return "no version is loaded"
        return "; ".join(
            f"version {version} is {state}" + (f" ({reason})" if reason else "")
            for version, (state, reason) in sorted(self.states.items())
        )

    def compile(self, route: Any, generation: int) -> None:
        """Swap in the route as it looks with what is ready here."""
        self._pinned = {}
        self.generation = generation
        self.table = None
        self._codec = None
        if route is None:
            return
        self.revision = route.revision
        primary = self.versions.get(route.primary.version)
        if primary is not None:
            self._codec = primary.codec
            self.table = compile_route(route, generation, self.versions, time.time_ns())


class Models:
    """All models of one worker.

    Threading: everything on the loop thread; the registry's callbacks come through
    `on_change`, which the worker hands over with `call_soon_threadsafe`.
    """

    def __init__(
        self,
        index: int,
        fleet: Fleet,
        snapshot_path: Path,
        batch: BatchConfig,
        makers: tuple[CodecMaker, EncoderMaker, Callable[[GatewayError], int]],
    ) -> None:
        self._index = index
        self._fleet = fleet
        self._words = fleet.worker(index)
        self._path = snapshot_path
        self._batch = batch
        self._make_codec, self._make_encoder, self._status_of = makers
        self._entries: dict[str, Entry] = {}
        self._slots: dict[tuple[str, str], int] = {}
        self.serving: snapshot.Serving | None = None
        self.generation = 0
        self.registry: Any = None
        self.log_event: Callable[[Any], None] = lambda event: None

    def get(self, model: str) -> Entry | None:
        """A model by name."""
        return self._entries.get(model)

    @property
    def names(self) -> list[str]:
        """Models known here, sorted."""
        return sorted(self._entries)

    @property
    def ready(self) -> bool:
        """Whether every primary can answer; a version that failed to load never unreadies the rest."""
        if self.serving is None:
            return False
        for name, entry in self._entries.items():
            route = self.serving.routes.get(name)
            if route is not None:
                if route.primary.version not in entry.versions:
                    return False
            elif any(state in {"loading", "ready"} for state, _ in entry.states.values()):
                # Control will give it its first route once its versions have settled.
                return False
        return True

    @property
    def settled(self) -> bool:
        """Whether a snapshot is here and no version that carries, or may get, weight is still loading."""
        if self.serving is None:
            return False
        for name, entry in self._entries.items():
            route = self.serving.routes.get(name)
            if route is None:
                wanted = set(entry.states)
            else:
                wanted = {v.version for v in route.variants if v.weight_bp}
            if any(entry.states.get(version, ("", None))[0] == "loading" for version in wanted):
                return False
        return True

    def poll(self) -> None:
        """Take up a newer generation. Cost when there is none: one word read."""
        generation = self._fleet.generation
        if generation != self.generation:
            self._reload(generation)

    def _reload(self, generation: int) -> None:
        try:
            serving = snapshot.decode_serving(self._path.read_bytes())
        except FileNotFoundError:
            return
        except SnapshotCorrupt as exc:
            log.error("snapshot_unreadable", extra={"why": str(exc)})  # noqa: TRY400
            return
        self.serving = serving
        self._slots = {(d.model, d.version): d.slot for d in serving.versions}
        for key in self._slots:
            entry = self._entries.setdefault(key[0], Entry(key[0]))
            entry.states.setdefault(key[1], ("loading", None))
        for name, entry in list(self._entries.items()):
            for version in list(entry.states):
                if (name, version) not in self._slots:
                    del entry.states[version]
                    entry.versions.pop(version, None)
            if not entry.states:
                del self._entries[name]
        if self.registry is not None:
            self.registry.want(list(self._slots))
        self._compile()
        # Only now: from here on no request is routed by the older table.
        self.generation = max(generation, serving.generation)
        self._words[fleet_words.GENERATION] = serving.generation

    def _compile(self) -> None:
        if self.serving is None:
            return
        for name, entry in self._entries.items():
            entry.compile(self.serving.routes.get(name), self.serving.generation)

    def on_change(self, model: str, version: str, state: str, reason: str | None) -> None:
        """A version changed its state in the registry; on the loop."""
        slot = self._slots.get((model, version))
        entry = self._entries.get(model)
        session = self.registry.get(model, version) if state == "ready" else None
        if slot is not None and entry is not None:
            words = self._fleet.slot(self._index, slot)
            entry.states[version] = (state, reason)
            if session is not None:
                entry.versions[version] = self._make_version(session, entry, words)
                words[fleet_words.LOAD_MS] = session.load_ms
            else:
                entry.versions.pop(version, None)
            self._compile()
            self._fleet.set_reason(self._index, slot, reason or "")
            states = {"loading": 1, "ready": 2, "draining": 3, "failed": 4}
            words[fleet_words.LOAD_STATE] = states.get(state, 0)
        kind = {"ready": "loaded", "failed": "failed", "unloaded": "unloaded"}.get(state)
        if kind is not None:
            facts = ModelFacts(name=model, version=version)
            if session is not None and entry is not None and version in entry.versions:
                facts = entry.versions[version].facts
            load_ms = session.load_ms if session is not None else None
            self.log_event(
                ModelEvent(kind=kind, at_ns=time.time_ns(), model=facts, reason=reason, load_ms=load_ms)
            )
            log.info(
                "version_" + kind,
                extra={"model": model, "version": version, "reason": reason, "load_ms": load_ms},
            )

    def _make_version(self, session: Session, entry: Entry, words: memoryview) -> Version:
        codec = next(
            (
                v.codec
                for v in entry.versions.values()
                if v.signature == session.signature and v.batchable == session.batchable
            ),
            None,
        )
        codec = codec or self._make_codec(session.model, session)
        encoder_ = self._make_encoder(session.model, session.version, session)
        version = Version(session, codec, encoder_, self._batch, words)
        version.status_of = self._status_of
        return version

    def aborted_events(self) -> list[Prediction]:
        """What a predecessor of this worker index had admitted and not recorded when it died."""
        events = []
        for (model, version), slot in self._slots.items():
            words = self._fleet.slot(self._index, slot)
            count = words[fleet_words.ADMITTED] - words[fleet_words.RECORDED]
            if count > 0:
                events.append(
                    Prediction(
                        kind="aborted",
                        done_ns=time.time_ns(),
                        model=ModelFacts(name=model, version=version),
                        status=0,
                        code="aborted",
                        count=count,
                    )
                )
            words[fleet_words.RECORDED] = words[fleet_words.ADMITTED]
        return events
