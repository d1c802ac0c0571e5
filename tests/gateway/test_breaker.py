"""The breaker: what opens it, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.breaker import COUNTS_MIN, RATIO, UNITS_MIN, WINDOW_NS, Breaker, Volume

S = 1_000_000_000
NOTHING = Volume(0, 0, 0)


def counted(breaker: Breaker, at_ns: list[int], units: list[int], volume: Volume) -> bool:
    """Count all of them; whether it is open now."""
    for at, unit in zip(at_ns, units, strict=True):
        breaker.count(at, unit, volume)
    return breaker.is_open


def test_three_counts_of_three_units_in_ten_seconds_open_it() -> None:
    """Where the primary answers all of its own; the third says so, once."""
    breaker = Breaker(1, 0, NOTHING)
    volume = Volume(100, 900, 0)
    assert [breaker.count(i * S, i, volume) for i in range(4)] == [False, False, True, False]
    assert (breaker.counts, breaker.units, breaker.window) == (3, 3, volume)


@pytest.mark.parametrize(
    ("at_ns", "units"),
    [
        ([0, 1], [1, 2]),
        ([0, 1, 2, 3, 4], [7, 7, 7, 8, 8]),
        ([0, 1, WINDOW_NS], [1, 2, 3]),
    ],
    ids=["two counts", "two units", "the first was too long ago"],
)
def test_less_does_not(at_ns: list[int], units: list[int]) -> None:
    """Two counts, many counts of two units, or three over more than ten seconds."""
    assert not counted(Breaker(1, 0, NOTHING), at_ns, units, Volume(10, 10, 0))


@pytest.mark.parametrize(
    ("volume", "opens"),
    [
        (Volume(100, 1000, 1), True),
        (Volume(100, 666, 1), False),
        (Volume(100, 667, 1), True),
        (Volume(3, 1000, 50), False),
        (Volume(3, 1000, 49), True),
        (Volume(3, 0, 0), True),
    ],
)
def test_more_than_twenty_times_the_rate_of_the_primary(volume: Volume, opens: bool) -> None:
    """Three counts against what the primary fails of its own at the same time; at exactly twenty it stays shut."""
    assert counted(Breaker(1, 0, NOTHING), [1, 2, 3], [1, 2, 3], volume) is opens


def test_only_what_the_primary_failed_lately_counts() -> None:
    """What it failed before the window does not keep the breaker shut, and what ran before does not hide the rate."""
    breaker = Breaker(1, 0, NOTHING)
    for second in range(1, 31):
        breaker.read(second * S, Volume(1000, 1000 + second, 500 if second > 5 else 0))
    later = Volume(1010, 1040, 500)
    assert counted(breaker, [31 * S] * 3, [1, 2, 3], later)
    assert breaker.window.primary_bad == 0
    assert breaker.window.requests == 10


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12 * S), st.integers(0, 5)), max_size=30),
    st.integers(0, 1000),
    st.integers(1, 1000),
    st.integers(0, 20),
)
def test_it_opens_when_the_rule_says_and_never_shuts(
    hits: list[tuple[int, int]], requests: int, primary: int, bad: int
) -> None:
    """Held against the rule, reckoned anew at each count over all that came before."""
    bad = min(bad, primary)
    breaker, open_ = Breaker(1, 0, NOTHING), False
    seen: list[tuple[int, int]] = []
    at = 0
    for gap_ns, unit in hits:
        at += gap_ns // 4
        seen.append((at, unit))
        window = [one for one in seen if one[0] > at - WINDOW_NS]
        volume = Volume(requests + len(window), primary, bad)
        said = breaker.count(at, unit, volume)
        ran, own, own_bad = breaker.window
        enough = len(window) >= COUNTS_MIN and len({one[1] for one in window}) >= UNITS_MIN
        if not open_:
            assert said == (enough and (not own_bad or len(window) * own > RATIO * own_bad * ran))
        open_ = open_ or said
        assert breaker.is_open == open_
