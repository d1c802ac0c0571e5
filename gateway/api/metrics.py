"""`/metrics`: the fleet's shared memory as Prometheus metrics, read at scrape time.

A custom collector over the slots; never prometheus_client's multiprocess mode, whose files a kill can leave in a
state that breaks every scrape. Label values come from closed sets: models and versions in the snapshot, kinds.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gateway import fleet as words_of
from gateway.api.version_metrics import version_metrics
from gateway.control.snapshot import Serving
from gateway.counting import ERROR_CODES
from gateway.fleet import Fleet
from gateway.routing import effective_weights_bp

_GAUGES = (
    ("inflight_requests", "requests in flight", words_of.INFLIGHT, 1),
    ("connections", "open connections", words_of.CONNECTIONS, 1),
    ("held_replies", "frames waiting for the log", words_of.HELD_REPLIES, 1),
    ("ring_used_bytes", "appended and not yet on disk", words_of.RING_USED_BYTES, 1),
    ("log_unavailable", "1: its records cannot be kept at present", words_of.LOG_UNAVAILABLE, 1),
    ("generation", "generation that the worker runs", words_of.GENERATION, 1),
    ("state", "0 down, 1 starting, 2 serving, 3 draining", words_of.STATE, 1),
    ("resident_memory_bytes", "memory of the process that is in RAM", words_of.RSS_BYTES, 1),
    ("loop_gap_seconds", "longest turn of the event loop in the last second", words_of.LOOP_GAP_NS, 1e9),
)
_COUNTERS = (
    ("restarts", "times a worker was started again", words_of.RESTARTS, 1),
    ("refused_requests", "refused before they were queued", words_of.REFUSED, 1),
    ("unlogged_numbers", "numbers drawn without a record", words_of.GAPS, 1),
    ("turns", "turns of the event loop that ran requests", words_of.TURNS, 1),
    ("cpu_seconds", "CPU time, user and system", words_of.CPU_NS, 1e9),
    ("refused_connections", "connections that found no room", words_of.CONNECTIONS_REFUSED, 1),
    ("evicted_connections", "idle connections closed to make room", words_of.CONNECTIONS_EVICTED, 1),
    ("lame_connections", "connections that asked nothing while their worker stopped", words_of.LAME, 1),
)
# What stands in a process's status.json: its key, our name, what it is, what it counts in.
_SIDECAR = (
    ("ticks", "ticks", "ticks closed", 1.0),
    ("incomplete_ticks", "incomplete_ticks", "ticks that missed records and prove nothing", 1.0),
    ("stale_s", "stale_seconds", "how old the newest record is that it has read", 1.0),
)
_FORWARDER = (
    ("forwarded_events", "forwarded_events", "records that the topic acknowledged", 1.0),
    ("batches", "batches", "batches that the topic acknowledged", 1.0),
    ("sent_bytes", "sent_bytes", "their bytes, compressed", 1.0),
    ("stalled_ms", "stalled_seconds", "how long nothing could be sent; 0 while records go", 1e3),
    ("lag_events", "lag_events", "records on disk that are not in the topic", 1.0),
    ("lag_bytes", "lag_bytes", "bytes on disk that are not in the topic", 1.0),
    ("oldest_age_ms", "oldest_seconds", "how old the oldest record is that is not in the topic", 1e3),
    ("retries", "retries", "times that sending was begun anew", 1.0),
    ("quarantined", "quarantined_records", "records that the topic would not take", 1.0),
)


_RECORDER = (
    ("failing", "failing", "1: the disk takes no records at present", 1.0),
    ("failing_s", "failing_seconds", "for how long", 1.0),
    ("waiting", "waiting", "1: workers' records wait for room, at the spool's limit or on a full disk", 1.0),
    ("spool_bytes", "spool_bytes", "what the spool takes", 1.0),
    ("held_bytes", "held_bytes", "of that, what is not in the topic and may not go; 0 without Kafka", 1.0),
    ("max_bytes", "max_bytes", "the spool's limit", 1.0),
    ("fill", "spool_fill", "how much of the limit is used; with Kafka by what may not go", 1.0),
    ("bytes_per_h", "bytes_per_hour", "what comes to the spool, over the last five minutes", 1.0),
    ("hours_left", "hours_left", "until the limit at this rate; missing while nothing comes", 1.0),
    ("free_bytes", "free_bytes", "free room where the state directory lies", 1.0),
    (
        "reserve_bytes",
        "reserve_bytes",
        "room that is held for control's records; 0 once it was given up",
        1.0,
    ),
    ("unsynced_bytes", "unsynced_bytes", "appended and not on disk, at most in the last second", 1.0),
    ("unsynced_ms", "unsynced_seconds", "how long a ring with such had nothing written, at most", 1e3),
    ("oldest_age_s", "oldest_seconds", "how old the oldest segment is", 1.0),
    ("trimmed_segments", "trimmed_segments", "segments that retention removed", 1.0),
    ("trimmed_bytes", "trimmed_bytes", "bytes of those", 1.0),
    ("gaps", "logged_gaps", "gap events that the recorder logged", 1.0),
)
STATUS_FIGURES = {"forwarder": _FORWARDER, "sidecar": _SIDECAR, "recorder": _RECORDER, "supervisor": ()}


class FleetCollector:
    """Makes the metric families of one scrape, as of `now_ns` (epoch)."""

    def __init__(self, fleet: Fleet, serving: Serving, state_dir: Path, now_ns: int) -> None:
        self._now_ns = now_ns
        self._fleet = fleet
        self._serving = serving
        self._state_dir = state_dir

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from version_metrics(self._fleet, self._serving.versions, time.monotonic_ns())
        yield self._labels()
        yield from self._workers()
        weights = GaugeMetricFamily(
            "tidegate_route_weight_bp",
            "share of live traffic; of a canary whose lease is over 0, the primary has it",
            labels=["model", "variant", "version"],
        )
        revisions = GaugeMetricFamily("tidegate_route_revision", "revision", labels=["model"])
        for route in self._serving.routes.values():
            revisions.add_metric([route.model], route.revision)
            effective_bp = effective_weights_bp(route, self._now_ns)
            for v in route.variants:
                weights.add_metric([route.model, v.name, v.version], effective_bp[v.name])
        yield weights
        yield revisions
        frozen = GaugeMetricFamily("tidegate_route_frozen", "1: held by a person", labels=["model"])
        latched = GaugeMetricFamily(
            "tidegate_route_latched_versions", "versions that get no weight until re-armed", labels=["model"]
        )
        for route in self._serving.routes.values():
            frozen.add_metric([route.model], int(route.frozen))
            latched.add_metric([route.model], len(route.latched))
        yield frozen
        yield latched
        yield from self._forwarder()
        yield from self._sidecar()
        yield from self._supervisor()

    def _labels(self) -> CounterMetricFamily:
        accepted: dict[str, int] = {}
        for desired in self._serving.versions:
            name, workers = (desired.model, desired.version), range(self._fleet.workers)
            slots = (self._fleet.version(i, desired.slot, *name) for i in workers)
            known = accepted.get(desired.model, 0)
            accepted[desired.model] = known + sum(slot[words_of.LABELS] for slot in slots)
        family = CounterMetricFamily("tidegate_labels_accepted", "labels taken as feedback", labels=["model"])
        for model, count in accepted.items():
            family.add_metric([model], count)
        return family

    def _workers(self) -> Iterator[Metric]:
        blocks = ((i, self._fleet.worker(i)) for i in range(self._fleet.workers))
        # A spare index counts from when its first worker comes; then it stays, as counters must.
        numbered = [(i, words) for i, words in blocks if words[words_of.PID] or not words[words_of.SPARE]]
        workers = [words for _, words in numbered]
        up = sum(words[words_of.STATE] == words_of.SERVING for words in workers)
        yield GaugeMetricFamily("tidegate_workers_up", "workers that serve", value=up)
        yield GaugeMetricFamily("tidegate_workers", "workers configured", value=self._fleet.wanted)
        yield GaugeMetricFamily(
            "tidegate_generation", "newest generation published", value=self._fleet.generation
        )
        for name, text, word, unit in _GAUGES:
            family = GaugeMetricFamily(f"tidegate_worker_{name}", text, labels=["worker"])
            for index, words in numbered:
                family.add_metric([str(index)], words[word] / unit)
            yield family
        for name, text, word, unit in _COUNTERS:
            counter = CounterMetricFamily(f"tidegate_worker_{name}", text, labels=["worker"])
            for index, words in numbered:
                counter.add_metric([str(index)], words[word] / unit)
            yield counter
        timeouts = CounterMetricFamily(
            "tidegate_timed_out_connections", "connections cut off for being slow", labels=["kind"]
        )
        for index, kind in enumerate(words_of.TIMEOUTS):
            timeouts.add_metric([kind], sum(words[words_of.TIMED_OUT0 + index] for words in workers))
        yield timeouts
        errors = CounterMetricFamily("tidegate_errors", "requests answered with an error", labels=["code"])
        for index, code in enumerate((*ERROR_CODES, "other")):
            at = words_of.ERROR_CODE0 + (index if code != "other" else words_of.ERROR_CODES_MAX - 1)
            errors.add_metric([code], sum(words[at] for words in workers))
        yield errors

    def _forwarder(self) -> Iterator[Metric]:
        yield from self._figures("forwarder", self._status("forwarder"))
        yield from self._figures("recorder", self._status("recorder"))

    def _sidecar(self) -> Iterator[Metric]:
        """What the monitor says of itself; its age is the one thing that a dead one cannot keep young."""
        status = self._status("sidecar")
        yield from self._figures("sidecar", status)
        pending = status.get("pending")
        if isinstance(pending, list):
            text = "rollbacks that were decided and are not in effect"
            yield GaugeMetricFamily("tidegate_sidecar_pending_rollbacks", text, value=len(pending))
        evidence = GaugeMetricFamily(
            "tidegate_rollout_evidence",
            "weighted e-value against a canary; acts at 1 / alpha",
            labels=["model", "version", "kind"],
        )
        rollouts = status.get("rollouts")
        for rollout in rollouts if isinstance(rollouts, list) else ():
            with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
                for kind, value in rollout["evidence"].items():
                    evidence.add_metric([rollout["model"], rollout["version"], kind], float(value))
        yield evidence
        yield from _ratios(status)

    def _supervisor(self) -> Iterator[Metric]:
        """How often roles died, by why; who dies again and again; what the supervisor replaces."""
        status = self._status("supervisor")
        yield from self._figures("supervisor", status)
        restarts = CounterMetricFamily(
            "tidegate_process_restarts",
            "times a process ended unasked, by role and cause",
            labels=["process", "cause"],
        )
        deaths = status.get("deaths")
        for role, by in deaths.items() if isinstance(deaths, dict) else ():
            for cause, count in by.items():
                restarts.add_metric([role, cause], count)
        yield restarts
        children = status.get("children")
        looping = sum(bool(c.get("crash_looping")) for c in children) if isinstance(children, list) else 0
        yield GaugeMetricFamily(
            "tidegate_processes_crash_looping", "processes that died 5 times within a minute", value=looping
        )
        given_up = GaugeMetricFamily(
            "tidegate_replacement_failed", "1: the last one was refused or given up", labels=["what"]
        )
        for what in ("restart", "upgrade"):
            last = status.get(what)
            if isinstance(last, dict):
                given_up.add_metric([what], float(last.get("state") == "failed"))
        yield given_up

    def _figures(self, process: str, status: dict[str, Any]) -> Iterator[Metric]:
        """Its own figures as gauges, since it counts anew with each life, and how old they are."""
        for key, name, text, unit in STATUS_FIGURES[process]:
            value = status.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield GaugeMetricFamily(f"tidegate_{process}_{name}", text, value=value / unit)
        at_ns = status.get("at_ns")
        if isinstance(at_ns, int):
            age_s = max(self._now_ns - at_ns, 0) / 1e9
            text = "since it last said how it does: a dead or stopped one grows old"
            yield GaugeMetricFamily(f"tidegate_{process}_age_seconds", text, value=age_s)

    def _status(self, process: str) -> dict[str, Any]:
        try:
            status = json.loads((self._state_dir / process / "status.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}


def exposition(fleet: Fleet, serving: Serving, state_dir: Path) -> tuple[bytes, str]:
    """The body and content type of one scrape, now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FleetCollector(fleet, serving, state_dir, time.time_ns()))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _ratios(status: dict[str, Any]) -> Iterator[Metric]:
    """Whether traffic is split as routes say, from the sidecar's status."""
    evidence = GaugeMetricFamily(
        "tidegate_route_ratio_evidence",
        "e-value against traffic being split as the route says; alarms at tidegate_route_ratio_needed",
        labels=["model"],
    )
    needed = GaugeMetricFamily(
        "tidegate_route_ratio_needed", "what that evidence has to reach", labels=["model"]
    )
    alarm = GaugeMetricFamily(
        "tidegate_route_ratio_alarm",
        "1: traffic of the present revision is not split as it says, and verdicts on the model are held",
        labels=["model"],
    )
    ratios = status.get("ratios")
    for ratio in ratios if isinstance(ratios, list) else ():
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            name = [str(ratio["model"])]
            evidence.add_metric(name, float(ratio["evidence"]))
            needed.add_metric(name, float(ratio["needed"]))
            alarm.add_metric(name, int(ratio["alarmed"]))
    yield from (evidence, needed, alarm)
