"""A version that refuses what the primary takes: seen in the log, with its route, each for itself and in sums."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.append import REFUSALS_PER_S
from gateway.control import snapshot
from gateway.control.changes import with_variants
from gateway.routing import Change, Variant
from loaders.signature import Signature, TensorSpec
from tests.gateway.path import SIGNATURE, Path_, Sink, SumSession

BODY = (
    b'{"id":"r","inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}],'
    b'"parameters":{"event_time_ns":5}}'
)
ARMS = (
    Variant(name="primary", version="1", role="primary", weight_bp=5_000),
    Variant(name="canary", version="2", role="canary", weight_bp=5_000),
)


def on_split(tmp_path: Path, body: Callable[[Path_], Awaitable[None]], *settings: str) -> None:
    """Half of the traffic to version 2, whose X has five columns where the primary's has four."""

    async def main() -> None:
        path = Path_(tmp_path, *settings)
        wider = SumSession(Signature((TensorSpec("X", "FP32", (-1, 5)),), SIGNATURE.outputs))
        wider.version = "2"
        sessions = {"1": path.session, "2": wider}
        path.models.registry.get = lambda model, version: sessions[version]
        serving, ledger = snapshot.decode(path.snapshot_path.read_bytes())
        route = with_variants(serving.routes["sum"], ARMS, Change(by="test", reason="test"))
        versions = tuple(snapshot.DesiredVersion(model="sum", version=v, slot=s) for s, v in enumerate("12"))
        after = msgspec.structs.replace(serving, generation=2, routes={"sum": route}, versions=versions)
        snapshot.write(path.snapshot_path, snapshot.encode(after, ledger))
        path.fleet.publish_generation(2)
        path.models.poll()
        path.models.on_change("sum", "2", "ready", None)
        await body(path)
        path.close()

    asyncio.run(main())


def refused(path: Path_) -> list[Any]:
    path.core.turn()
    return [event for event in path.predictions() if event.kind == "refused"]


@pytest.mark.parametrize("large", [False, True])
def test_refusal_after_the_draw_has_its_route(tmp_path: Path, large: bool) -> None:
    """Assigned, served, weight, reason, revision, unit and version: as if it had answered."""

    async def body(path: Path_) -> None:
        sinks = [Sink() for _ in range(40)]
        for sink in sinks:
            if large:
                await path.core.receive_large(path.head(), BODY, sink, time.perf_counter_ns())
            else:
                path.send_body(BODY, sink)
        events = refused(path)
        assert 0 < len(events) < 40
        assert len(events) == sum(sink.status == 400 for sink in sinks)
        for event in events:
            route = event.route
            assert (route.assigned, route.served, route.weight_bp) == ("canary", "canary", 5_000)
            assert (route.reason, route.revision) == ("weight", 2)
            assert (event.model.name, event.model.version, event.model.tree_sha256) == ("sum", "2", "aa")
            assert (event.request_id, event.parameters) == ("r", {"event_time_ns": 5})
        assert len({event.route.unit_hash for event in events}) == len(events)

    on_split(tmp_path, body)


def test_refusal_before_the_draw_has_none(tmp_path: Path) -> None:
    """What the primary's signature refuses was drawn for no one; a pinned request was not drawn either."""

    async def body(path: Path_) -> None:
        path.send([1, 2, 3])
        path.send([1, 2, 3, 4], version="2")
        assert [(e.route, e.model.version) for e in refused(path)] == [(None, None), (None, "2")]

    on_split(tmp_path, body)


def test_full_queue_is_no_refusal_of_the_version(tmp_path: Path) -> None:
    """Overload says something of the load, not of the arm that was drawn."""

    async def body(path: Path_) -> None:
        table = path.models.get("sum").table  # type: ignore[union-attr]
        keys = (f"u{n}" for n in range(100))
        key = next(k for k in keys if table.pick(table.unit_of(k)).assigned == "primary")
        for _ in range(20):
            path.send([1, 2, 3, 4], routing_key=key)
        events = refused(path)
        assert [(e.code, e.model.version) for e in events] == [("overloaded", None)] * 10
        # On whom the draw fell stands there all the same: else a slow arm would seem to be drawn too seldom.
        assert {(e.route.assigned, e.route.reason) for e in events} == {("primary", "key")}

    on_split(tmp_path, body, "batch.queue_max_rows=10")


def test_sums_keep_refusals_of_an_arm_apart(tmp_path: Path) -> None:
    """Above the limit of a second: one event by route and code, with route and count; none is counted twice."""

    async def body(path: Path_) -> None:
        path.appender._clock_ns = lambda: 5
        counted: Counter[str | None] = Counter()
        sent = 6 * REFUSALS_PER_S
        statuses = Counter(path.send([1, 2, 3, 4]).status for _ in range(sent))
        for _ in range(50):
            path.send([1, 2, 3])
        path.appender.flush_sums()
        events = refused(path)
        for event in events:
            counted[event.route.assigned if event.route else None] += event.count
        assert counted == {"canary": statuses[400], None: 50}
        sums = [event for event in events if event.count > 1]
        assert sorted((e.route is None, e.model.version or "") for e in sums) == [(False, "2"), (True, "")]
        (of_canary,) = [e.route for e in sums if e.route]
        assert (of_canary.served, of_canary.weight_bp, of_canary.reason) == ("canary", 5_000, "weight")
        assert of_canary.unit_hash is None

    on_split(tmp_path, body)
