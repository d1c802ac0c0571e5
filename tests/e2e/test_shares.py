"""Shares: in every worker and at every weight the log has as many requests of a canary as its weight says."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.serving import Gateway
from gateway.audit.event import Prediction
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.splits import (
    ask,
    connections_to_both,
    controls,
    revision,
    serving_two,
    shift,
    split,
    variants,
)
from tests.e2e.wire import Wire, infer

LEVEL = 0.999
WEIGHTS_BP = (100, 500, 5_000)
SUITE, PROOF = 2_500, 20_000


def interval(count: int, share: float, level: float = LEVEL) -> tuple[int, int]:
    """The exact binomial interval: what is below it, and what is above, comes by chance (1 - level) / 2 at most."""
    tail = (1 - level) / 2
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(share) + (count - k) * math.log1p(-share)
        for k in range(count + 1)
    ]  # fmt: skip
    chances = [math.exp(log) for log in logs]
    low, below = 0, chances[0]
    while below <= tail:
        low += 1
        below += chances[low]
    high, above = count, chances[count]
    while above <= tail:
        high -= 1
        above += chances[high]
    return low, high


def test_the_interval_holds_what_it_says() -> None:
    """99.9% of it all, and less without its ends; as tables have it for a fair coin thrown ten times."""
    assert interval(10, 0.5, 0.95) == (2, 8)
    low, high = interval(1_000, 0.05)
    inside = [
        math.comb(1_000, k) * 0.05**k * 0.95 ** (1_000 - k) for k in range(low, high + 1)
    ]  # fmt: skip
    assert sum(inside) >= LEVEL > sum(inside) - min(inside[0], inside[-1])


@pytest.fixture(scope="module")
def split_in_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two workers; version 2 is primary, version 1 a canary."""
    with serving_two(tmp_path_factory.mktemp("shares")) as serving:
        split(serving, variants(0))
        yield serving


def logged(gateway: Gateway, at: int, wanted: int) -> dict[str, Counter[str]]:
    """By worker, how many requests of a revision the log has for each variant, under reason `weight`."""
    feed = SpoolFeed(gateway.state_dir / "spool")
    found: dict[str, Counter[str]] = {}
    seen = 0
    try:
        while seen < wanted and (events := feed.read(10_000, 2_000).events):
            for event in events:
                if isinstance(event, Prediction) and event.route and event.route.revision == at:
                    assert (event.route.reason, event.route.assigned) == ("weight", event.route.served)
                    source = event.id.split("-")[0]
                    found.setdefault(source, Counter())[str(event.route.assigned)] += 1
                    seen += 1
    finally:
        feed.close()
    assert seen == wanted, "the log has all that were answered"
    return found


def shares_held(gateway: Gateway, weight_bp: int, count: int) -> dict[str, tuple[int, int, int]]:
    """Ask so often; by worker what the canary got, and the interval it should be in."""
    wires = connections_to_both(gateway)
    reply = shift(gateway, weight_bp)
    assert reply.status == 200, reply
    at = revision(gateway)
    with ThreadPoolExecutor(len(wires)) as pool:
        answered = sum(pool.map(lambda wire: ask(wire, count // len(wires) + 1), wires), Counter())
    for wire in wires:
        wire.close()
    found = logged(gateway, at, sum(answered.values()))
    assert len(found) == 2, "both workers were asked"
    held = {}
    for source, drawn in found.items():
        assert drawn["canary"] == answered[source, "1"], "the client saw what the log says"
        held[source] = (drawn["canary"], *interval(sum(drawn.values()), weight_bp / 10_000))
    return held


def check_shares(gateway: Gateway, weight_bp: int, count: int) -> None:
    """Within the interval in each worker. Outside once in a thousand is chance; twice in turn is not."""
    for last in (False, True):
        held = shares_held(gateway, weight_bp, count)
        if all(low <= got <= high for got, low, high in held.values()):
            return
        assert not last, f"at {weight_bp} bp (got, least, most) by worker: {held}"
        shift(gateway, 0)


@pytest.mark.parametrize("weight_bp", WEIGHTS_BP)
def test_each_worker_draws_by_weight(split_in_two: Gateway, weight_bp: int) -> None:
    """1%, 5% and half, by what the log has under reason `weight`, within the exact 99.9% interval."""
    check_shares(split_in_two, weight_bp, SUITE)


@pytest.mark.prove
@pytest.mark.parametrize("weight_bp", WEIGHTS_BP)
def test_each_worker_draws_by_weight_in_the_long_run(split_in_two: Gateway, weight_bp: int) -> None:
    """The same over 20,000 requests each."""
    check_shares(split_in_two, weight_bp, PROOF)


def test_a_key_falls_alike_in_every_worker_and_the_log_cannot_tell_where(split_in_two: Gateway) -> None:
    """Twenty callers at half: each gets one version whoever answers; control's events hold no secret to tell which."""
    wires = connections_to_both(split_in_two)
    shift(split_in_two, 0)
    assert shift(split_in_two, 5_000).status == 200

    def version(wire: Wire, caller: str) -> str:
        reply = wire.exchange(infer("linear", [[1.0, 2.0, 3.0, 4.0]], x_routing_key=caller))
        return str(json.loads(reply.body)["model_version"])

    found = {
        caller: {version(wire, caller) for wire in wires} for caller in (f"caller-{n}" for n in range(20))
    }
    for wire in wires:
        wire.close()
    assert all(len(versions) == 1 for versions in found.values())
    assert len({versions.pop() for versions in found.values()}) == 2
    secret = (split_in_two.state_dir / "routing.key").read_text().strip()
    events = controls(split_in_two)
    documents = [e.after for e in events if e.after and "variants" in e.after]
    assert documents
    assert {document.get("salt", "") for document in documents} == {""}
    assert all(document["salt_id"] and document["salt_id"] not in secret for document in documents)
    assert secret not in str(events)
