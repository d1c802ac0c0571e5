"""Compare-and-set from many writers at once: one history, without a hole, a fork or a change that nobody made."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from bench.serving import Gateway
from tests.e2e.splits import ROUTE, controls, revision, serving_two, split, variants

WRITERS = 50


class Attempt(NamedTuple):
    """What a writer sent, and what it was told."""

    sent: int
    weight_bp: int
    status: int
    revision: int
    by: str | None


@pytest.fixture
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One worker over two versions, the route split."""
    with serving_two(tmp_path_factory.mktemp("cas"), ("sidecar.enabled=false",), workers=1) as serving:
        assert split(serving, variants(1)).content["revision"] == 2
        yield serving


def race(gateway: Gateway, attempts: int) -> list[Attempt]:
    """So many attempts by all writers together; each decides on what it was told last."""
    made: list[Attempt] = []
    left = iter(range(attempts))
    lock = threading.Lock()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        known = 2
        while True:
            with lock:
                if next(left, None) is None:
                    return
            weight_bp = rng.randrange(1, 10_000)
            body = {"weights_bp": {"canary": weight_bp}, "reason": f"writer {seed}"}
            reply = gateway.admin("POST", f"{ROUTE}/shift", body, revision=known)
            by = (reply.content.get("changed") or {}).get("reason")
            attempt = Attempt(known, weight_bp, reply.status, reply.content["revision"], by)
            made.append(attempt)
            known = attempt.revision

    with ThreadPoolExecutor(WRITERS) as pool:
        for done in [pool.submit(write, seed) for seed in range(WRITERS)]:
            done.result()
    return made


def check(gateway: Gateway, made: list[Attempt]) -> None:
    """The log's history is linear, and it is what the writers were told."""
    assert {attempt.status for attempt in made} <= {200, 202, 412}, made
    history = [event for event in controls(gateway) if event.kind in {"route", "shift"}]
    assert [e.revision for e in history] == list(range(1, len(history) + 1))
    for earlier, later in zip(history, history[1:], strict=False):
        assert later.before is not None
        assert earlier.after is not None
        assert later.before["variants"] == earlier.after["variants"]
        assert later.before["revision"] == earlier.revision
    weights = {e.revision: (e.after or {})["variants"][1]["weight_bp"] for e in history[2:]}
    won = {a.revision: a.weight_bp for a in made if a.status != 412}
    assert won == weights
    assert len(won) == sum(a.status != 412 for a in made)
    assert all(a.sent + 1 == a.revision for a in made if a.status != 412)
    lost = [a for a in made if a.status == 412]
    assert all(a.revision > a.sent and a.by is not None for a in lost)
    assert lost, "nobody raced"
    assert revision(gateway) == len(history)


def test_of_500_attempts_each_revision_has_one(gateway: Gateway) -> None:
    """50 writers, 500 attempts; `make prove` makes ten thousand."""
    check(gateway, race(gateway, 500))


@pytest.mark.prove
def test_of_10_000_attempts_each_revision_has_one(gateway: Gateway) -> None:
    """50 writers, 1e4 attempts."""
    check(gateway, race(gateway, 10_000))
