"""Who is drawn: a million units through many shifts, and tables that generations share."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.control.changes import shifted
from gateway.routing import TOTAL_BP, Route, RouteTable, compile_route
from tests.gateway.test_routing import CANARIES, WHY, split

UNITS = 1_000_000
READY = {"1", "2", "3", "4"}
NAMES = ("primary", *CANARIES)


def places(table: RouteTable, buckets: NDArray[np.int64]) -> NDArray[np.int8]:
    """Who is drawn in each bucket, as a place in NAMES."""
    arms = [table.pick(bucket) for bucket in range(TOTAL_BP)]
    return np.array([NAMES.index(arm.assigned or "") for arm in arms], dtype=np.int8)[buckets]


@pytest.mark.parametrize("seed", range(2))
def test_raising_a_weight_moves_none_of_a_million_units_off_a_canary(seed: int) -> None:
    """Three canaries, raised and lowered in turns: a unit leaves a canary only where that one was lowered, and of those
    that it had it keeps as many as it can."""
    rng = random.Random(seed)
    units = np.random.default_rng(seed).integers(0, 1 << 64, UNITS, dtype=np.uint64)
    buckets = (units % np.uint64(TOTAL_BP)).astype(np.int64)
    some = units[:500].tolist()
    route = split(a=0, b=0, c=0)
    table = compile_route(route, 1, READY)
    before = places(table, buckets)
    for generation in range(2, 42):
        names = rng.sample(CANARIES, rng.choice((1, 1, 2)))
        weights_bp = {name: rng.choice((0, 1, 100, rng.randrange(3_333))) for name in names}
        was_bp = route.weights_bp
        route = shifted(route, weights_bp, WHY)
        table = compile_route(route, generation, READY, before=table)
        after = places(table, buckets)
        for place, name in enumerate(NAMES[1:], start=1):
            had, has = before == place, after == place
            if route.weights_bp[name] >= was_bp[name]:
                assert not (had & ~has).any(), f"{name} was raised, and lost units"
            else:
                assert not (has & ~had).any(), f"{name} was lowered, and got units"
            moved = had & ~has
            assert (after[moved] == 0).all() or len(names) > 1, "they go to the primary"
        drawn = [NAMES.index(table.pick(unit).assigned or "") for unit in some]
        assert drawn == after[: len(some)].tolist(), "a unit falls into its bucket"
        before = after


def test_an_unchanged_route_keeps_its_buckets_at_a_new_generation() -> None:
    """The draw and the work stay; what the log says of it is the new generation's."""
    route = split(a=2_500, b=100)
    first = compile_route(route, 7, READY)
    again = compile_route(msgspec.convert(msgspec.to_builtins(route), Route), 8, READY, before=first)
    assert again._owners is first._owners
    assert [again.pick(unit).assigned for unit in range(0, TOTAL_BP, 7)] == [
        first.pick(unit).assigned for unit in range(0, TOTAL_BP, 7)
    ]
    assert {again.pick(unit).generation for unit in range(TOTAL_BP)} == {8}


def test_changed_buckets_are_not_kept() -> None:
    """A shift has a table of its own, and one before it does not change."""
    route = split(a=2_500)
    first = compile_route(route, 7, READY)
    second = compile_route(shifted(route, {"a": 100}, WHY), 8, READY, before=first)
    count = [sum(table.pick(unit).assigned == "a" for unit in range(TOTAL_BP)) for table in (first, second)]
    assert count == [2_500, 100]


def test_what_is_ready_is_looked_at_anew() -> None:
    """Kept buckets are no kept fallback: readiness, leases and breakers are this generation's."""
    route = split(a=2_500)
    first = compile_route(route, 7, {"1"})
    second = compile_route(route, 8, READY, before=first)
    third = compile_route(route, 9, READY, broken={"a"}, before=second)
    reasons = [
        {table.pick(unit).reason for unit in range(TOTAL_BP)} - {"weight"} for table in (first, second, third)
    ]
    assert reasons == [{"fallback"}, set(), {"fallback"}]
    found = next(third.pick(unit) for unit in range(TOTAL_BP) if third.pick(unit).assigned == "a")
    assert (found.served, found.version, found.weight_bp) == ("primary", "1", 2_500)


def test_an_older_document_keeps_its_draw() -> None:
    """Its own salt is what counts, whatever the host's secret is."""
    route = split(a=5_000)
    drawn = [compile_route(route, 1, READY, key=key).unit_of("ana") for key in (b"", b"x" * 32)]
    assert drawn[0] == drawn[1]


def test_who_reads_the_document_cannot_work_out_the_draw() -> None:
    """With a salt's name alone, the host's secret, the model and the name choose the place, and nothing in the log."""
    named = msgspec.structs.replace(split(a=5_000), salt="", salt_id="0a" * 8)
    other_name = msgspec.structs.replace(named, salt_id="0b" * 8)
    other_model = msgspec.structs.replace(named, model="n")
    keys = (b"k" * 32, b"l" * 32)
    units = [compile_route(named, 1, READY, key=key).unit_of("ana") for key in keys]
    units += [
        compile_route(route, 1, READY, key=keys[0]).unit_of("ana") for route in (other_name, other_model)
    ]
    assert len(set(units)) == 4
    assert compile_route(named, 2, READY, key=keys[0]).unit_of("ana") == units[0]
