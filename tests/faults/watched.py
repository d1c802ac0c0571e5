"""A gateway that is watched: flights, a canary, a shadow; and what must hold once it is quiet and stopped."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from bench.serving import Gateway
from examples.flights.build import SERVED, build_version, pairs
from examples.flights.data import Flights
from examples.flights.replay import Answered, Counters, Plan, Replay, Unreachable
from gateway.audit.event import Event, Feedback, Prediction, Shadow
from gateway.audit.identity import parse_event_id
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.verify import verify
from shadow.bundles import Bundles
from shadow.replay import Source, fold, replay, stored_of
from shadow.runner import Runner
from shadow.store import Store
from shadow.verdicts import Stored, gateway_sources, spool_verdicts
from shadow.watch import Watch

MODEL = "flights"
ROUTE = f"routes/{MODEL}"
SHADOW, SWAPPED = "3", "4"
DECLARED_SD = 1.5
"""Version 2 is of another season than version 1; so much is declared, and it keeps within it."""
SETTINGS = (
    "sidecar.clock=event",
    "sidecar.tick_s=0.3",
    f"policy.{MODEL}.ramp=auto",
    f"policy.{MODEL}.lease_s=120",
    f'policy.{MODEL}.versions={{"2":{{"max_shift_sd":{{"probabilities":{DECLARED_SD}}}}}}}',
)
HOUR_NS = 3_600_000_000_000
WITHIN_S = 120.0
"""These tests share their processors, and the mirror runs only when no one else does."""


def until(what: str, holds: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """Poll until it holds; gives what it found."""
    deadline = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.1)
    return found


def write_models(root: Path) -> None:
    """Versions 1 and 2, a faultless retrain as 3, and as 4 one whose exporter swapped two columns."""
    for version in ("1", "2"):
        shutil.copytree(SERVED / version, root / MODEL / version)
    build_version(root / MODEL / SHADOW)
    worst = pairs()[0]
    build_version(root / MODEL / SWAPPED, (worst["a"], worst["b"]))


def half_year() -> Flights:
    """4,000 flights of January to June, from the bundles' references; each lands three hours later."""
    parts = []
    for version in ("1", "2"):
        with np.load(SERVED / version / "reference.npz") as file:
            parts.append([file["rows"], file["times_ns"], file["labels"]])
    rows, times_ns, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    days = (times_ns // (24 * HOUR_NS)).astype(np.int32)
    return Flights(rows, times_ns, labels.astype(np.int8), times_ns + 3 * HOUR_NS, days)


class Sender:
    """Flights in the air, on a thread of its own.

    Args:
        over_s: wall time that all of them take at least.
    """

    def __init__(self, url: str, flights: Flights, over_s: float) -> None:
        span_s = int(flights.event_ns[-1] - flights.event_ns[0]) / 1e9
        self.flights = flights
        self.answers: list[tuple[float, str]] = []
        """When, and by which version."""
        self._replay = Replay(flights, Plan(url, speed=span_s / over_s), on_answer=self._answered)
        self._failed: list[Unreachable] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sender:
        """Let them fly."""
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._replay.stop()
        self._thread.join(WITHIN_S)

    def await_answered(self, count: int) -> None:
        """Wait until so many were answered, or all have flown."""
        until(
            f"{count} answers",
            lambda: self._replay.counters.answered >= count or not self._thread.is_alive(),
        )

    def stop(self) -> Counters:
        """Take no more of them."""
        self._replay.stop()
        return self.join()

    def join(self) -> Counters:
        """Wait for the last one."""
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive()
        assert self._failed == []
        return self._replay.counters

    def versions(self) -> Counter[str]:
        """Answers by version."""
        return Counter(version for _, version in self.answers)

    def _run(self) -> None:
        try:
            asyncio.run(self._replay.run())
        except Unreachable as exc:
            self._failed.append(exc)

    def _answered(self, answered: Answered) -> None:
        at = answered.body.find(b'"model_version":"') + 17
        self.answers.append((time.time(), answered.body[at : answered.body.index(b'"', at)].decode()))


def assert_none_failed(counters: Counters) -> None:
    """Every request and every label was taken, and its fate is known."""
    assert counters.answered == counters.sent > 0
    assert (counters.failed, counters.unknown, counters.reconnects) == ({}, 0, 0)
    assert (counters.labels_failed, counters.labels_unknown) == ({}, 0)
    assert counters.labels_sent > 0


# --- the gateway's processes and routes --------------------------------------------------------


def pid_of(gateway: Gateway, role: str) -> int:
    """The pid of the one process of a role, once it is there."""
    return int(until(f"a {role}", lambda: gateway.pids(role))[0])


def kill(gateway: Gateway, role: str) -> int:
    """Kill -9 the one process of a role, whatever it is doing; returns its pid."""
    pid = pid_of(gateway, role)
    os.kill(pid, signal.SIGKILL)
    return pid


def load_all(gateway: Gateway) -> None:
    """Every version is loaded and warm: without a route only the newest is."""
    versions = {path.name for path in (gateway.models / MODEL).iterdir()}
    for version in sorted(versions):
        body = {"version": version, "reason": "a test"}
        until(
            f"version {version} is asked for",
            lambda body=body: admin(gateway, "POST", f"models/{MODEL}/load", body),
        )

    def warm() -> bool:
        found = admin(gateway, "GET", f"models/{MODEL}")
        return {v["version"] for v in found["versions"] if v["state"] == "ready"} == versions

    until("all versions are warm", warm)


def set_route(gateway: Gateway, canary: str, weight_bp: int) -> None:
    """Version 1 is primary, `canary` has a share, version 3 sees everything. Control may be away for a while."""
    primary = {"name": "primary", "version": "1", "role": "primary", "weight_bp": 10_000 - weight_bp}
    on_trial = {"name": "canary", "version": canary, "role": "canary", "weight_bp": weight_bp}
    shadow = {"name": "next", "version": SHADOW, "role": "shadow", "sample_bp": 10_000}
    body = {"variants": [primary, on_trial, shadow], "reason": "a test"}

    def made() -> bool:
        now = admin(gateway, "GET", ROUTE)
        if now is None:
            return False
        held = {v["version"]: v.get("weight_bp") for v in now["variants"] if v["role"] == "canary"}
        if held == {canary: weight_bp}:
            return True
        admin(gateway, "PUT", ROUTE, body, revision=now["revision"])
        return False

    until(f"canary {canary} with {weight_bp} bp", made)


def admin(gateway: Gateway, method: str, path: str, body: object = None, **more: Any) -> Any:
    """The reply's content; None where control does not answer or refuses."""
    try:
        reply = gateway.admin(method, path, body, **more)
    except OSError:
        return None
    return reply.content if reply.status < 300 else None


def said_by(gateway: Gateway, role: str, pid: int | None = None) -> list[dict[str, Any]]:
    """Lines of the gateway's log by a role (and a process), oldest first."""
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["role"] == role and pid in {None, line["pid"]}]


# --- the log -----------------------------------------------------------------------------------


def events_of(gateway: Gateway) -> Iterator[Event]:
    """The whole log."""
    feed = SpoolFeed(gateway.state_dir / "spool")
    while events := feed.read(5000, 0).events:
        yield from events


def ticks_of(gateway: Gateway) -> list[Stored]:
    """Ticks 1 to n; raises LogIncomplete when one is missing or stands there twice."""
    gateway_id = (gateway.state_dir / "gateway_id").read_text().strip()
    return stored_of(spool_verdicts(gateway.state_dir / "spool", gateway_sources(gateway_id), {}))


def await_quiet(gateway: Gateway, answered: int) -> None:
    """Wait until the mirror has answered everything, and a tick covers it all."""

    def is_quiet() -> bool:
        last: dict[str, int] = {}
        predictions = mirrored = 0
        for event in events_of(gateway):
            if isinstance(event, Prediction | Feedback):
                which = parse_event_id(event.id)
                key = f"{which.source:016x}-{which.epoch:08x}"
                last[key] = max(last.get(key, 0), which.seq)
            predictions += isinstance(event, Prediction)
            mirrored += isinstance(event, Shadow)
        ends = {key: end for one in ticks_of(gateway) for key, (_, end) in one.tick.cuts.items()}
        return predictions >= answered <= mirrored and all(
            ends.get(key, 0) > seq for key, seq in last.items()
        )

    until("mirror and sidecar have caught up", is_quiet)


class Folded(NamedTuple):
    """The sidecar's database beside what a fresh fold of the log gives."""

    ticks: list[Stored]
    state: tuple[bytes, bytes]
    join: tuple[dict[str, list[Any]], dict[str, list[Any]]]
    differing: list[str]
    """Decisions that are not made again, or were not made before."""


def fold_again(gateway: Gateway, scratch: Path) -> Folded:
    """Fold the log of a stopped gateway from its start."""
    spool = gateway.state_dir / "spool"
    gateway_id = (gateway.state_dir / "gateway_id").read_text().strip()
    ticks = ticks_of(gateway)
    kept = gateway.state_dir / "sidecar" / "state.db"
    fresh = scratch / "folded.db"
    store = Store(fresh)
    watch = Watch(Bundles(gateway.models), store.join)
    runner = Runner(SpoolFeed(spool), watch, {}, gateway_sources(gateway_id))
    for one in ticks:
        fold(watch, runner, one, 0)
    store.commit()
    store.close()
    saved = Store(kept)
    folded = replay(Source(lambda: SpoolFeed(spool), 0), gateway_id, ticks, Bundles(gateway.models))
    states = tuple(msgspec.msgpack.encode(state) for state in (saved.saved.state, folded.state))
    saved.close()
    differing = [one.differs for one in folded.decisions if one.differs is not None]
    return Folded(ticks, (states[0], states[1]), (_rows(kept), _rows(fresh)), differing)


def _rows(path: Path) -> dict[str, list[Any]]:
    """Every row of the label join."""
    db = sqlite3.connect(path)
    try:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: sorted(db.execute(f"SELECT * FROM {name}"), key=repr) for name in tables}  # noqa: S608
    finally:
        db.close()
    del found["saved"]
    return found


def assert_folds_again(gateway: Gateway, scratch: Path) -> Folded:
    """State, join and decisions of the sidecar are what the log gives, byte for byte; no tick is missing or double."""
    folded = fold_again(gateway, scratch)
    assert folded.differing == []
    if folded.state[0] != folded.state[1]:
        kept, fresh = (msgspec.msgpack.decode(content) for content in folded.state)
        assert kept == fresh
    assert folded.state[0] == folded.state[1]
    assert folded.join[0] == folded.join[1]
    made = [(d.model, d.rollout, d.cause) for one in folded.ticks for _, d in one.decisions]
    assert len(made) == len(set(made))
    return folded


def assert_mirrored(gateway: Gateway) -> None:
    """Every request that was drawn has one answer of the shadow's, however often it was given."""
    drawn: set[str] = set()
    answers: dict[tuple[str, str, str], Shadow] = {}
    for event in events_of(gateway):
        if isinstance(event, Prediction) and event.route is not None and event.route.unit_hash is not None:
            drawn.add(event.id)
        elif isinstance(event, Shadow):
            first = answers.setdefault((event.derived_from, event.version, event.run), event)
            assert (first.kind, first.outputs) == (event.kind, event.outputs)
    assert {
        (kind, version, run) for kind, version, run in ((a.kind, a.version, a.run) for a in answers.values())
    } == {("done", SHADOW, "live")}
    assert {derived_from for derived_from, _, _ in answers} == drawn


def assert_no_hole(gateway: Gateway) -> None:
    """No number is missing, unreadable or there twice, and none was given up."""
    report = verify(gateway.state_dir / "spool")
    assert report.ok, [epoch for epoch in report.epochs if not epoch.ok]
    assert [epoch.gaps for epoch in report.epochs if epoch.gaps] == []
