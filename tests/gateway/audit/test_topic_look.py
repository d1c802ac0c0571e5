"""Finding a number in a partition: where each epoch's records stand in order among those of others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit import topic_look
from gateway.audit.identity import EventId
from gateway.audit.topic_look import Item, bracket, search, search_all

SOURCE, EPOCH = 7, 1000


class Part:
    """A partition in memory; counts what is fetched."""

    def __init__(self, keys: Sequence[tuple[int, int]], begin: int = 0) -> None:
        """`keys`: (source, seq) in order of offset."""
        self.begin = begin
        self.end = begin + len(keys)
        self.items = [
            Item(begin + n, str(EventId(source, EPOCH, seq)).encode(), b"")
            for n, (source, seq) in enumerate(keys)
        ]
        self.fetched = 0

    async def fetch(self, offset: int) -> Sequence[Item]:
        """Up to five hundred."""
        found = self.items[offset - self.begin : offset - self.begin + 500]
        self.fetched += len(found)
        return found


def look(part: Part, seq: int, low: int | None = None) -> Item | None:
    """As `TopicLook.find` does in one partition."""
    wanted = EventId(SOURCE, EPOCH, seq)

    async def run() -> Item | None:
        where = await bracket(part, wanted, part.begin if low is None else low)
        return None if where is None else await search(part, wanted, where, lambda _: None)

    return asyncio.run(run())


def seq_of(item: Item | None) -> int | None:
    """The number of an item."""
    return None if item is None else int(item.key[-16:], 16)


@st.composite
def partitions(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int]]:
    """An epoch's numbers with gaps, resent from earlier ones now and then, between others' records."""
    numbers = sorted(draw(st.sets(st.integers(0, 300), min_size=1, max_size=120)))
    sent: list[int] = []
    at = 0
    while at < len(numbers):
        run = draw(st.integers(1, 40))
        sent += numbers[at : at + run]
        at += run
        at = max(at - draw(st.integers(0, 10)), 1) if at < len(numbers) and draw(st.booleans()) else at
    mixed: list[tuple[int, int]] = [(1, n) for n in range(draw(st.integers(0, 50)))]
    for n, seq in enumerate(sent):
        mixed += [(1, 1000 + n * 10 + k) for k in range(draw(st.integers(0, 6)))]
        mixed.append((SOURCE, seq))
    mixed += [(1, 100_000 + n) for n in range(draw(st.integers(0, 200)))]
    return mixed, numbers


@pytest.fixture(autouse=True, scope="module")
def small_steps():
    """Partitions of a few hundred records are large then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topic_look, "STEP_RECORDS", 8)
        patch.setattr(Part, "fetch", _few)
        yield


async def _few(self: Part, offset: int) -> Sequence[Item]:
    found = self.items[offset - self.begin : offset - self.begin + 5]
    self.fetched += len(found)
    return found


@settings(max_examples=150, deadline=None)
@given(partitions(), st.integers(0, 310))
def test_what_is_met_is_found(made: tuple[list[tuple[int, int]], list[int]], wanted: int):
    """A number with a record is found wherever leaping meets its epoch at all; one without is not made up."""
    keys, numbers = made
    part = Part(keys, 1000)
    found = look(part, wanted)
    if wanted in numbers and found is not None:
        assert seq_of(found) == wanted
    elif found is not None:
        # The one before, where a gap may stand.
        assert seq_of(found) == max((n for n in numbers if n < wanted), default=None)
    every = asyncio.run(search_all(part, str(EventId(SOURCE, EPOCH, wanted)).encode(), lambda _: None))
    assert seq_of(every) == (wanted if wanted in numbers else None)


def test_little_is_read():
    """Of twenty thousand records a few hundred."""
    keys = [(n % 4 + SOURCE - 1, n // 4) for n in range(20_000)]
    for wanted in (0, 7, 2345, 4999):
        part = Part(keys)
        assert seq_of(look(part, wanted)) == wanted
        assert part.fetched < 400


def test_a_partition_without_the_epoch_costs_a_few_fetches():
    """It is leapt through, not read."""
    part = Part([(1, n) for n in range(100_000)])
    assert look(part, 5) is None
    assert part.fetched < 100
