"""Serving: what one worker serves, made from the snapshot and from what is loaded here.

snapshot (control) -> **Models** -> core. `Models.poll` compares the generation word in shared memory with
what this worker runs; on a change it reads the snapshot, asks the registry for the versions wanted, swaps
the routing tables, and only then publishes the generation it runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway import fleet as fleet_words
from gateway.audit.event import Control, ModelFacts, Prediction
from gateway.audit.event import Model as ModelEvent
from gateway.breaker import WINDOW_NS, Breaker
from gateway.control import snapshot
from gateway.counting import Counting
from gateway.entry import Entry
from gateway.errors import GatewayError, SnapshotCorrupt, StateFormatNewer, UnknownModel
from gateway.fleet import LOAD_STATES, SLOTS, Fleet
from gateway.head import raised
from gateway.redaction import Redactor
from gateway.settings import Batch as BatchConfig
from gateway.version import Version
from loaders.session import Session

log = logging.getLogger("tidegate.worker")

_BY_TIER = {"high": "fail"}
"""What becomes of answers that cannot be logged, where bundle.toml does not say."""

CodecMaker = Callable[[str, Session], Any]
EncoderMaker = Callable[[str, str, Session], Any]


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
        self.entries: dict[str, Entry] = {}
        self._slots: dict[tuple[str, str], int] = {}
        self._occupants: dict[int, Counting] = {}
        """By slot, what counts in it."""
        self.serving: snapshot.Serving | None = None
        self.generation = 0
        self._asked: dict[tuple[str, str], str | None] = {}
        """The last load that an operator asked for, by version."""
        self._unreadable = False
        """The newest snapshot cannot be used; the tables before it stay, and it is tried again."""
        self.registry: Any = None
        self.log_event: Callable[[Any], None] = lambda event: None
        self.redaction_key = b""
        self.routing_key = b""
        """The host's secret for routing keys."""

    def get(self, model: str) -> Entry | None:
        """A model by name."""
        return self.entries.get(model)

    @property
    def fleet(self) -> Fleet:
        """The shared memory of all workers."""
        return self._fleet

    def slot_of(self, model: str, version: str) -> int:
        """Where a version's counters stand in the fleet's memory.

        Raises:
            UnknownModel: it is not among those that are loaded, or to be.
        """
        slot = self._slots.get((model, version))
        if slot is None:
            raise UnknownModel(model, version)
        return slot

    def state_over_workers(self, model: str, version: str) -> tuple[str, str | None]:
        """A version's worst load state over the workers that serve, and why; `absent` when it is not wanted.

        One that starts does not count: it takes no requests before it has loaded.
        """
        slot = self._slots.get((model, version))
        if slot is None:
            return "absent", None
        found = [
            (
                LOAD_STATES[self._fleet.version(i, slot, model, version)[fleet_words.LOAD_STATE]],
                self._fleet.reason(i, slot),
            )
            for i in range(self._fleet.workers)
            if i == self._index or self._fleet.worker(i)[fleet_words.STATE] == fleet_words.SERVING
        ]
        for state in ("failed", "loading", "absent", "unloading"):
            for has, reason in found:
                if has == state:
                    # Wanted, and not begun yet.
                    return ("loading" if state == "absent" else state), reason or None
        return "ready", None

    @property
    def names(self) -> list[str]:
        """Models known here, sorted."""
        return sorted(self.entries)

    @property
    def ready(self) -> bool:
        """Whether every primary can answer; a version that failed to load never unreadies the rest."""
        if self.serving is None:
            return False
        for name, entry in self.entries.items():
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
        for name, entry in self.entries.items():
            route = self.serving.routes.get(name)
            if route is None:
                wanted = set(entry.states)
            else:
                wanted = {v.version for v in route.variants if v.weight_bp}
            if any(entry.states.get(version, ("", None))[0] == "loading" for version in wanted):
                return False
        return True

    @property
    def awaits_route(self) -> bool:
        """Whether a model could answer but for its first route, which control is about to make."""
        routes = self.serving.routes if self.serving is not None else {}
        return any(
            name not in routes and any(state == "ready" for state, _ in entry.states.values())
            for name, entry in self.entries.items()
        )

    def poll(self) -> None:
        """Take up a newer generation. Cost when there is none: one word read."""
        generation = self._fleet.generation
        if generation != self.generation:
            self._reload(generation)

    def end_leases(self, now_ns: int) -> None:
        """Give the primary the traffic of canaries whose lease is over; called by the timer, not by requests.

        By this worker's own clock, so that it needs nobody. A renewal is a new generation. Cost: a comparison a model.
        """
        for name, entry in self.entries.items():
            if entry.lease_end_ns is not None and entry.lease_end_ns <= now_ns and self.serving is not None:
                log.warning("lease_over", extra={"model": name, "revision": entry.revision})
                entry.compile(self.serving.routes.get(name), self.serving.generation, now_ns)

    def start(self) -> None:
        """Begin with the snapshot on disk, also while control is not there (yet): fail static."""
        self._reload(self._fleet.generation)

    def _reload(self, generation: int) -> None:
        try:
            serving = snapshot.decode_serving(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (SnapshotCorrupt, StateFormatNewer, OSError) as exc:
            if not self._unreadable:
                log.error("snapshot_unreadable", extra={"why": str(exc)})  # noqa: TRY400
            self._unreadable = True
            return
        self._unreadable = False
        self.serving = serving
        before, self._slots = self._slots, {(d.model, d.version): d.slot for d in serving.versions}
        self._take_slots()
        for key in self._slots:
            entry = self.entries.get(key[0]) or self._new_entry(key[0])
            entry.states.setdefault(key[1], ("loading", None))
        for name, entry in list(self.entries.items()):
            for version in list(entry.states):
                if (name, version) not in self._slots:
                    del entry.states[version]
                    entry.versions.pop(version, None)
            if not entry.states:
                del self.entries[name]
        if self.registry is not None:
            self.registry.want(list(self._slots))
        asked, self._asked = self._asked, {(d.model, d.version): d.load_event for d in serving.versions}
        for key, event in self._asked.items():
            if key in asked and asked[key] != event:
                self._retry(*key)
        self._compile()
        for key, slot in before.items():
            if self._slots.get(key) == slot:
                continue
            if self._fleet.owner(self._index, slot) in {None, key}:
                self._fleet.slot(self._index, slot)[fleet_words.LOAD_STATE] = fleet_words.ABSENT
            if key in self._slots and key[1] in self.entries[key[0]].versions:
                self.on_change(*key, "ready", None)
        # Only now: from here on no request is routed by the older table.
        self.generation = generation
        self._words[fleet_words.GENERATION] = serving.generation

    def _new_entry(self, model: str) -> Entry:
        entry = self.entries[model] = Entry(model)
        entry.key = self.routing_key
        entry.on_open = self._broke
        return entry

    def _broke(self, entry: Entry, variant: str, breaker: Breaker) -> None:
        """A breaker opened in this worker: one event in the log, one line for people."""
        version = entry.breaker_version(variant)
        found = {
            "variant": variant,
            "version": version,
            "worker": self._index,
            "counts": breaker.counts,
            "units": breaker.units,
            "requests": breaker.window.requests,
            "primary_requests": breaker.window.primary,
            "primary_bad": breaker.window.primary_bad,
            "window_s": WINDOW_NS // 1_000_000_000,
        }
        why = (
            f"version {version} could not answer {breaker.counts} of {breaker.window.requests} requests in"
            f" {WINDOW_NS // 1_000_000_000} s that the primary answered"
        )
        serving = self.serving
        self.log_event(
            Control(
                kind="breaker",
                at_ns=time.time_ns(),
                gateway_id="" if serving is None else serving.gateway_id,
                model=entry.model,
                revision=entry.revision,
                after=found,
                by=f"worker-{self._index}",
                reason=why,
            )
        )
        log.warning("breaker_open", extra={"model": entry.model, "revision": entry.revision, **found})

    def _take_slots(self) -> None:
        """Make the slots of this snapshot those of its versions: one that was another's begins at zero."""
        for (model, version), slot in self._slots.items():
            if self._fleet.take(self._index, slot, model, version):
                former = self._occupants.pop(slot, None)
                if former is not None:
                    former.leave()

    def _retry(self, model: str, version: str) -> None:
        """Try a failed version again; shown before the generation is, so that no one takes the old failure for news."""
        if self.entries[model].states.get(version, ("", None))[0] == "failed":
            self.entries[model].states[version] = ("loading", None)
            words = self._fleet.slot(self._index, self._slots[model, version])
            words[fleet_words.LOAD_STATE] = fleet_words.LOADING
        self.registry.retry(model, version)

    def _compile(self, only: Entry | None = None) -> None:
        if self.serving is None:
            return
        now_ns = time.time_ns()
        for name, entry in self.entries.items() if only is None else ((only.model, only),):
            entry.compile(self.serving.routes.get(name), self.serving.generation, now_ns)

    def on_change(self, model: str, version: str, state: str, reason: str | None) -> None:
        """A version changed its state in the registry; on the loop."""
        slot = self._slots.get((model, version))
        entry = self.entries.get(model)
        session = self.registry.get(model, version) if state == "ready" else None
        if slot is not None and entry is not None:
            words = self._fleet.slot(self._index, slot)
            entry.states[version] = (state, reason)
            if session is not None:
                made = self._make_version(session, entry, words)
                entry.versions[version] = made
                self._occupants[slot] = made.counting
                words[fleet_words.LOAD_MS] = session.load_ms
            else:
                entry.versions.pop(version, None)
            self._compile(entry)
            self._fleet.set_reason(self._index, slot, reason or "")
            # Draining, in the registry's words.
            word = "unloading" if state == "draining" else state
            words[fleet_words.LOAD_STATE] = LOAD_STATES.index(word) if word in LOAD_STATES else 0
        kind = {"ready": "loaded", "failed": "failed", "unloaded": "unloaded"}.get(state)
        if kind is not None:
            facts = ModelFacts(name=model, version=version)
            if session is not None and entry is not None and version in entry.versions:
                facts = entry.versions[version].facts
            load_ms = session.load_ms if session is not None else None
            self.log_event(
                ModelEvent(kind=kind, at_ns=time.time_ns(), model=facts, reason=reason, load_ms=load_ms)
            )
            if kind == "loaded" and reason:
                kind = "kept"
            log.log(
                logging.WARNING if kind in {"failed", "kept"} else logging.INFO,
                "version_" + kind,
                extra={"model": model, "version": version, "reason": reason, "load_ms": load_ms},
            )

    def _make_version(self, session: Session, entry: Entry, words: memoryview) -> Version:
        codec = next(
            (
                v.codec
                for v in entry.versions.values()
                if v.signature == session.signature
                and v.batchable == session.batchable
                and v.session.max_batch_rows == session.max_batch_rows
            ),
            None,
        )
        codec = codec or self._make_codec(session.model, session)
        encoder_ = self._make_encoder(session.model, session.version, session)
        version = Version(session, codec, encoder_, self._batch, words)
        version.status_of = self._status_of
        settings = session.bundle.settings
        version.least_level = settings.audit.level
        version.fails = (settings.audit.on_unavailable or _BY_TIER.get(settings.tier)) == "fail"
        if version.fails:
            # Without a level nobody waits for the record, and nothing could be told to fail.
            version.least_level = raised("spool", version.least_level)
        version.captures_full = settings.audit.capture == "full"
        if session.redacted:
            version.redactor = Redactor(session.redacted, self.redaction_key)
        version.audited = version.least_level is not None or version.redactor is not None
        return version

    def publish_waiting(self) -> None:
        """Since when requests wait for each version, and what its runs are predicted to cost; about once a second."""
        for entry in self.entries.values():
            for version in entry.versions.values():
                cost = version.cost
                version.counting.waiting_since(version.queue.oldest_ns())
                version.counting.predicted(cost.slowdown, cost.limit_rows, cost.limit_ns)
                version.counting.hanging(version.hung)
                if version.retries is not None:
                    version.retries.read(time.perf_counter_ns())

    def count_labels(self, model: str, count: int) -> None:
        """So many labels of a model were accepted."""
        slots = [slot for (name, _), slot in self._slots.items() if name == model]
        if slots:
            self._fleet.slot(self._index, min(slots))[fleet_words.LABELS] += count

    def aborted_events(self) -> list[Prediction]:
        """What a predecessor of this worker index had admitted and not recorded when it died; before `start`."""
        events = []
        for slot in range(SLOTS):
            owner = self._fleet.owner(self._index, slot)
            if owner is None:
                continue
            model, version = owner
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
