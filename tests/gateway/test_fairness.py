"""Laws of fairness: what a principal may take does not depend on what others do, and nothing is lost or made up."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fairness import ACCOUNTS_MAX, Bodies, Fairness, Held, Refusal, Turns
from gateway.settings import Allowance, Limits, ModelShare

S = 1_000_000_000
pauses_ns = st.lists(st.integers(0, 2 * S), min_size=1, max_size=60)


def limits(default: Allowance | None = None, **parts: object) -> Limits:
    """`[limits]` with these parts."""
    return Limits(default=default or Allowance(), **parts)  # type: ignore[arg-type]


def claim(fairness: Fairness, name: str = "a", now_ns: int = 0, **asked: int | str) -> Held | Refusal:
    """One request for model m of 100 bytes, on a worker that holds nothing else."""
    told = {"model": "m", "size": 100, "inflight": 0, **asked}
    return fairness.claim(name, told["model"], told["size"], told["inflight"], now_ns)  # type: ignore[arg-type]


def end(fairness: Fairness, held: Held | Refusal) -> None:
    """The request's end."""
    fairness.give_back(SimpleNamespace(held=held))


@given(st.integers(1, 50), st.integers(0, 20), pauses_ns)
def test_no_window_has_more_than_burst_and_rate(per_s: int, burst: int, pauses: list[int]) -> None:
    """Between any two requests taken there are at most `burst` and `per_s` times the time, whatever is asked when."""
    fairness = Fairness(limits(Allowance(per_s=per_s, burst=burst)), 100)
    now_ns, taken = 0, []
    for pause_ns in pauses:
        now_ns += pause_ns
        for _ in range(3):
            held = claim(fairness, now_ns=now_ns)
            if isinstance(held, Held):
                taken.append(now_ns)
                end(fairness, held)
    most = burst or per_s
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= most + (taken[last] - taken[first]) * per_s / S + 1e-6


@given(st.integers(1, 50), st.lists(st.tuples(st.integers(0, S), st.integers(0, 30)), max_size=60))
def test_who_keeps_its_rate_is_never_refused(per_s: int, others: list[tuple[int, int]]) -> None:
    """Whatever others ask between, a principal that comes no faster than its rate is taken each time."""
    fairness = Fairness(limits(Allowance(per_s=per_s)), 10_000)
    now_ns = 0
    for pause_ns, flood in others:
        now_ns += max(pause_ns, -(-S // per_s))
        for number in range(flood):
            claim(fairness, f"flood-{number % 3}", now_ns)
        held = claim(fairness, "good", now_ns)
        assert isinstance(held, Held)
        end(fairness, held)


@given(st.integers(1, 20), st.integers(0, 5), st.lists(st.integers(1, 40), max_size=20))
def test_rows_are_paid_for_afterwards(per_s: int, burst: int, sizes: list[int]) -> None:
    """A request of many rows is taken if one row could be, and the rest is owed: in the long run no more than the
    rate is had, but for the last."""
    fairness = Fairness(limits(Allowance(per_s=per_s, unit="rows", burst=burst)), 100)
    now_ns = had = 0
    for rows in sizes:
        held = claim(fairness, now_ns=now_ns)
        while isinstance(held, Refusal):
            now_ns += S // 10
            held = claim(fairness, now_ns=now_ns)
        fairness.charge(held, rows)
        end(fairness, held)
        assert had <= (burst or per_s) + now_ns * per_s / S + 1e-6
        had += rows


def test_a_share_counts_only_where_the_worker_is_full() -> None:
    """Who is alone may have all; once more than half is taken, what is over its share is refused, others are not."""
    fairness = Fairness(limits(Allowance(share_pct=20)), 100)
    for inflight in range(51):
        assert isinstance(claim(fairness, "greedy", inflight=inflight), Held)
    refused = claim(fairness, "greedy", inflight=51)
    assert isinstance(refused, Refusal)
    assert refused.by_principal
    assert "20" in refused.text
    assert isinstance(claim(fairness, "other", inflight=51), Held)


@given(st.lists(st.booleans(), max_size=80))
def test_what_ends_is_given_back(steps: list[bool]) -> None:
    """After any order of claims and ends, once all ended a principal has all that it had at first."""
    fairness = Fairness(
        limits(Allowance(share_pct=10, bytes_max=500), models={"m": ModelShare(share_pct=5)}), 100
    )
    held: list[Held] = []
    for takes in steps:
        if takes:
            got = claim(fairness, inflight=60)
            if isinstance(got, Held):
                held.append(got)
        elif held:
            end(fairness, held.pop())
    assert len(held) <= 5
    for one in held:
        end(fairness, one)
    assert fairness.inflight_of("m") == 0
    assert [isinstance(claim(fairness, inflight=60), Held) for _ in range(6)] == [True] * 5 + [False]


def test_giving_back_twice_gives_once() -> None:
    """A request that two ends are told of is one."""
    fairness = Fairness(limits(Allowance(share_pct=2)), 100)
    inference = SimpleNamespace(held=claim(fairness))
    other = claim(fairness)
    for _ in range(2):
        fairness.give_back(inference)
    assert isinstance(claim(fairness, inflight=60), Held)
    assert isinstance(claim(fairness, inflight=60), Refusal)
    assert isinstance(other, Held)


def test_bytes_in_flight_are_bounded() -> None:
    """Bodies together; one that is larger than all is taken when it is alone, or nobody could ever send it."""
    fairness = Fairness(limits(Allowance(bytes_max=250)), 100)
    first, second = claim(fairness), claim(fairness)
    refused = claim(fairness)
    assert isinstance(refused, Refusal)
    assert "250 bytes" in refused.text
    end(fairness, first)
    end(fairness, second)
    assert isinstance(claim(fairness, size=10_000), Held)
    assert isinstance(claim(fairness, size=1), Refusal)


def test_a_model_over_its_share_leaves_room_for_others() -> None:
    """A bulkhead: what is over the model's share is refused, as the model's fault; another model's is taken."""
    fairness = Fairness(limits(models={"m": ModelShare(share_pct=3)}), 100)
    assert [isinstance(claim(fairness, f"p{n}"), Held) for n in range(5)] == [True] * 3 + [False] * 2
    refused = claim(fairness, "p9")
    assert isinstance(refused, Refusal)
    assert not refused.by_principal
    assert isinstance(claim(fairness, model="other"), Held)


def test_a_refusal_takes_nothing() -> None:
    """Refused by the model's share, a request costs its principal no time."""
    fairness = Fairness(limits(Allowance(per_s=1, burst=2), models={"m": ModelShare(share_pct=1)}), 100)
    assert isinstance(claim(fairness), Held)
    assert isinstance(claim(fairness), Refusal)
    assert isinstance(claim(fairness, model="other"), Held)


def test_a_principal_has_its_own_limits() -> None:
    """In place of the default, not with it."""
    fairness = Fairness(limits(Allowance(per_s=1, burst=1), principals={"ci": Allowance()}), 100)
    assert isinstance(claim(fairness, "ci"), Held)
    assert isinstance(claim(fairness, "ci"), Held)
    assert isinstance(claim(fairness, "x"), Held)
    refused = claim(fairness, "x")
    assert isinstance(refused, Refusal)
    assert refused.wait_s == 1


@pytest.mark.parametrize("per_s", [0.01, 0.5, 1, 3])
def test_what_is_told_to_wait_is_enough(per_s: float) -> None:
    """Who comes again after the seconds that it was told is taken, up to a minute."""
    fairness = Fairness(limits(Allowance(per_s=per_s, burst=1)), 100)
    claim(fairness)
    refused = claim(fairness)
    assert isinstance(refused, Refusal)
    assert refused.wait_s == min(60, -(-1 // per_s))
    if per_s > 0.1:
        assert isinstance(claim(fairness, now_ns=refused.wait_s * S), Held)


def test_accounts_are_bounded_and_those_at_rest_make_room() -> None:
    """Addresses without end share one account once the table is full; those at rest are forgotten and lose nothing."""
    fairness = Fairness(limits(Allowance(per_s=1, burst=1), principals={"ci": Allowance()}), 100)
    for number in range(ACCOUNTS_MAX):
        assert isinstance(claim(fairness, f"n{number}"), Held)
    assert isinstance(claim(fairness, "first stranger"), Held)
    assert isinstance(claim(fairness, "second stranger"), Refusal)
    assert isinstance(claim(fairness, "ci"), Held)

    fairness = Fairness(limits(Allowance(per_s=1, burst=1)), 100)
    for number in range(ACCOUNTS_MAX):
        end(fairness, claim(fairness, f"n{number}"))
    assert isinstance(claim(fairness, "first", now_ns=5 * S), Held)
    assert isinstance(claim(fairness, "second", now_ns=5 * S), Held)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 1000)), min_size=1, max_size=200))
def test_lanes_are_shared_by_weight(asked: list[tuple[int, int]]) -> None:
    """While all models want a lane, none is behind another by more than a run of each, whatever runs cost."""
    shares = {"a": ModelShare(share_pct=100), "b": ModelShare(share_pct=50), "c": ModelShare(share_pct=10)}
    turns = Turns(shares)
    had = dict.fromkeys(shares, 0.0)
    costs = iter(asked * 3)
    for _, cost in costs:
        model = min(shares, key=turns.start)
        turns.charge(model, cost)
        had[model] += cost / turns.weight(model)
    for model in shares:
        for other in shares:
            most = max(cost for _, cost in asked)
            assert had[model] - had[other] <= most / turns.weight(model) + most / turns.weight(other) + 1e-6


def test_one_body_alone_is_taken_however_large() -> None:
    """Or nobody could ever send it."""
    bodies = Bodies(limits(Allowance(bytes_max=1000)))
    for own_bytes in range(0, 5000, 500):
        assert bodies.take("a", 500, own_bytes)
    assert not bodies.take("a", 1, 0)


def test_who_wanted_nothing_saves_nothing_up() -> None:
    """A model that comes back after a pause is next, and not next for as long as it was away."""
    turns = Turns({"a": ModelShare()})
    for _ in range(100):
        turns.charge("a", 1000)
    order = []
    for _ in range(6):
        model = min(("a", "b"), key=turns.start)
        order.append(model)
        turns.charge(model, 1000)
    assert order[0] == "b"
    assert order.count("a") >= 2


def test_nobody_is_limited_by_default() -> None:
    """`[limits]` is off unless it says something."""
    assert not Limits().is_on
    assert msgspec.convert({"default": {"per_s": 5}}, Limits).is_on
    assert msgspec.convert({"models": {"m": {}}}, Limits).is_on


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), max_size=60))
def test_bodies_on_their_way_are_bounded_by_account(parts: list[tuple[int, int]]) -> None:
    """Beyond what one connection has alone, an account never has more than it may; what is given back is free again,
    and another account is not concerned."""
    bodies = Bodies(limits(Allowance(bytes_max=1000), principals={"free": Allowance()}))
    own = dict.fromkeys(range(4), 0)
    for connection, size in parts:
        before = sum(own.values())
        if bodies.take("a", size, own[connection]):
            own[connection] += size
            assert before + size <= 1000 or before + size == own[connection]
        else:
            assert before + size > 1000
            assert before > own[connection]
            bodies.give_back("a", own.pop(connection)) if own[connection] else None
            own[connection] = 0
    assert bodies.take("b", 1000, 0)
    assert bodies.take("free", 10**9, 0)
    assert bodies.take("free", 10**9, 0)
    for held in own.values():
        if held:
            bodies.give_back("a", held)
    assert bodies.take("a", 600, 0)
    assert not bodies.take("a", 600, 0)
