"""The runner: which events a tick gets, and what becomes of all others."""

from __future__ import annotations

import pytest

from gateway.audit.event import Event, Heartbeat
from gateway.audit.feed import Hole
from gateway.audit.identity import id_prefix, source_of
from shadow.runner import Clock, Runner
from tests.shadow.play import SOURCES, WORKERS, ListFeed, Numbers

A, B, _ = WORKERS
FOREIGN = source_of("ffff", "worker", 0)


class Taken:
    """What was handed over."""

    def __init__(self) -> None:
        self.seqs: list[tuple[int, int]] = []
        self.holes: list[Hole] = []

    def take(self, event: Event) -> None:
        """One more."""
        self.seqs.append((int(event.id[:16], 16), int(event.id[26:], 16)))

    def take_hole(self, hole: Hole) -> None:
        """Missing ones."""
        self.holes.append(hole)


def beats(count: int, source: int, numbers: Numbers) -> list[Event]:
    """Events of a source."""
    return [numbers.draw(Heartbeat(at_ns=1), source) for _ in range(count)]


def key(source: int) -> str:
    """Its epoch."""
    return id_prefix(source, 1)[:-1]


def made(deliveries: list[list[Event]], cut: dict[str, int] | None = None) -> tuple[Runner, Taken]:
    """A runner over deliveries."""
    taken = Taken()
    return Runner(ListFeed(deliveries), taken, cut or {}, SOURCES), taken


def test_what_is_beyond_a_cut_waits() -> None:
    """Below it is handed over, above it is kept for the next; the end of reading takes what is held."""
    numbers = Numbers()
    runner, taken = made([beats(6, A, numbers), beats(4, B, numbers)])
    assert runner.read_to({key(A): (0, 2), key(B): (0, 3)}, 0)
    assert taken.seqs == [(A, 0), (A, 1), (B, 0), (B, 1), (B, 2)]
    assert runner.is_ahead
    assert runner.close() == {key(A): (0, 2), key(B): (0, 3)}
    assert runner.read() == 5
    assert runner.close() == {key(A): (2, 6), key(B): (3, 4)}
    assert not runner.is_ahead


def test_a_log_that_ends_before_the_cut() -> None:
    """Said so."""
    runner, _ = made([beats(3, A, Numbers())])
    assert not runner.read_to({key(A): (0, 4)}, 0)


def test_other_gateways_are_neither_taken_nor_kept() -> None:
    """A shared topic: their events are dropped as they are read, and do not look like the end."""
    numbers = Numbers()
    runner, taken = made([beats(50, FOREIGN, numbers), beats(50, FOREIGN, numbers), beats(2, A, numbers)])
    assert runner.read_to({key(A): (0, 2)}, 0)
    assert taken.seqs == [(A, 0), (A, 1)]
    assert not runner.is_ahead
    assert runner.close() == {key(A): (0, 2)}


def test_a_feed_that_begins_before_the_cut() -> None:
    """What stands below it is in the state already."""
    runner, taken = made([beats(5, A, Numbers())], {key(A): 3})
    runner.read()
    assert taken.seqs == [(A, 3), (A, 4)]
    assert runner.close() == {key(A): (3, 5)}


def test_a_hole_over_two_ticks_is_told_in_both() -> None:
    """Records that are gone since: each tick that they belonged to misses its part."""
    numbers = Numbers()
    numbers.next[A] = 7
    runner, taken = made([beats(2, A, numbers)])
    for number, cut in enumerate([(0, 3), (3, 6), (6, 9)]):
        assert runner.read_to({key(A): cut}, 0)
        assert runner.close() == {key(A): cut}
        assert len(taken.holes) == number + 1
    assert [(hole.from_seq, hole.to_seq) for hole in taken.holes] == [(0, 2), (3, 5), (6, 6)]
    assert taken.seqs == [(A, 7), (A, 8)]


def test_a_hole_stands_before_what_shows_it() -> None:
    """A hole and the events around it in one delivery: each in its tick."""
    numbers = Numbers()
    first = beats(2, A, numbers)
    numbers.next[A] += 2
    runner, taken = made([[*first, *beats(2, A, numbers)]])
    assert runner.read_to({key(A): (0, 2)}, 0)
    assert (taken.seqs, taken.holes) == ([(A, 0), (A, 1)], [])
    runner.close()
    assert runner.read_to({key(A): (2, 6)}, 0)
    assert taken.holes == [Hole(A, 1, 2, 3)]


@pytest.mark.parametrize(
    ("of", "fate"),
    [
        (f"{id_prefix(A, 1)}{1:016x}", "late"),
        (f"{id_prefix(A, 1)}{2:016x}", None),
        (f"{id_prefix(A, 2)}{0:016x}", None),
        (f"{id_prefix(B, 1)}{0:016x}", None),
        (f"{id_prefix(FOREIGN, 1)}{0:016x}", "unknown"),
        ("", "unknown"),
    ],
)
def test_fate_of_a_label(of: str, fate: str | None) -> None:
    """Behind what was read: late. Not read yet: it may come. Another gateway's or no id: unknown."""
    runner, _ = made([beats(2, A, Numbers())])
    runner.read()
    assert runner.fate(of) == fate


@pytest.mark.parametrize("jump_s", [-3600, 3600])
def test_how_far_behind_when_the_wall_clock_jumps(jump_s: int) -> None:
    """Set ahead, what is read of before looks as old as the jump, until the next record comes; set back, it looks like
    now. Time that passes is seen either way."""
    wall_s, steady_s = 1_000_000.0, 50.0
    clock = Clock(lambda: int(wall_s * 1e9), lambda: steady_s)
    numbers = Numbers()
    made = [numbers.draw(Heartbeat(at_ns=int(at_s * 1e9)), A) for at_s in (wall_s, wall_s + jump_s)]
    runner = Runner(ListFeed([[event] for event in made]), Taken(), {}, [A], clock=clock)
    wall_s += jump_s
    runner.read()
    assert runner.stale_s == pytest.approx(max(jump_s, 0))
    runner.read()
    assert runner.stale_s == pytest.approx(0)
    steady_s += 7
    assert runner.stale_s == pytest.approx(7)
