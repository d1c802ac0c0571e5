"""A worker whose canary's lease runs out: by its own clock, at once, and back with a renewal."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.control import snapshot
from gateway.control.changes import leased, with_variants
from gateway.routing import Change, Variant
from tests.gateway.path import Path_

ARMS = (
    Variant(name="primary", version="1", role="primary", weight_bp=5_000),
    Variant(name="canary", version="2", role="canary", weight_bp=5_000),
)
HOUR_NS = 3_600_000_000_000


def publish(path: Path_, generation: int, until_ns: int | None) -> None:
    """What control writes: an even split whose canary holds a lease until then."""
    serving, ledger = snapshot.decode(path.snapshot_path.read_bytes())
    first = serving.routes["sum"]
    if len(first.variants) == 1:
        first = with_variants(first, ARMS, Change(by="test", reason="test"))
    versions = tuple(snapshot.DesiredVersion(model="sum", version=v, slot=s) for s, v in enumerate("12"))
    after = msgspec.structs.replace(
        serving, generation=generation, routes={"sum": leased(first, until_ns)}, versions=versions
    )
    snapshot.write(path.snapshot_path, snapshot.encode(after, ledger))
    path.fleet.publish_generation(generation)
    path.models.poll()


def drawn(path: Path_, count: int = 80) -> Counter[tuple[str | None, int | None, str, int]]:
    """(assigned, effective weight, reason, generation) of so many requests, as logged."""
    path.predictions()
    for _ in range(count):
        path.send([1.0, 2.0, 3.0, 4.0])
    path.core.turn()
    routes = [event.route for event in path.predictions()]
    return Counter((r.assigned, r.weight_bp, r.reason, r.generation) for r in routes)


def on_path(tmp_path: Path, body: Callable[[Path_, int], None]) -> None:
    """Both versions ready, generation 2 with a lease of an hour; the body gets its end."""

    async def main() -> None:
        path = Path_(tmp_path)
        until_ns = time.time_ns() + HOUR_NS
        publish(path, 2, until_ns)
        path.models.on_change("sum", "2", "ready", None)
        body(path, until_ns)
        path.close()

    asyncio.run(main())


def test_lease_runs_out_by_the_workers_own_clock(tmp_path: Path) -> None:
    """Until its end the canary has its half; from then on all is the primary's, under the same generation."""

    def body(path: Path_, until_ns: int) -> None:
        path.models.end_leases(until_ns - 1)
        assert set(drawn(path)) == {("primary", 5_000, "weight", 2), ("canary", 5_000, "weight", 2)}
        path.models.end_leases(until_ns)
        assert drawn(path) == {("primary", 10_000, "weight", 2): 80}

    on_path(tmp_path, body)


def test_renewal_brings_it_back(tmp_path: Path) -> None:
    """A new generation with a later end is the split again; the end before it means nothing any more."""

    def body(path: Path_, until_ns: int) -> None:
        path.models.end_leases(until_ns)
        publish(path, 3, until_ns + 10)
        assert set(drawn(path)) == {("primary", 5_000, "weight", 3), ("canary", 5_000, "weight", 3)}
        path.models.end_leases(until_ns)
        assert len(drawn(path)) == 2
        path.models.end_leases(until_ns + 10)
        assert drawn(path) == {("primary", 10_000, "weight", 3): 80}

    on_path(tmp_path, body)


def test_late_worker_gives_nothing_to_it(tmp_path: Path) -> None:
    """One that takes up a lease which is over already (started late, or stood still) begins without the canary."""

    def body(path: Path_, until_ns: int) -> None:
        publish(path, 3, time.time_ns() - 1)
        assert drawn(path) == {("primary", 10_000, "weight", 3): 80}

    on_path(tmp_path, body)


def test_split_without_a_lease_never_ends(tmp_path: Path) -> None:
    """A manual split outlives any clock, and nothing is compiled anew for it."""

    def body(path: Path_, until_ns: int) -> None:
        publish(path, 3, None)
        table = path.models.get("sum").table  # type: ignore[union-attr]
        path.models.end_leases(until_ns + 1_000 * HOUR_NS)
        assert path.models.get("sum").table is table  # type: ignore[union-attr]

    on_path(tmp_path, body)
