"""Model `linear` in two versions behind one route, in a running gateway: what tests of routes do with it.

Version 2 is primary and answers twice as much as version 1, the canary.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.serving import Gateway, Reply
from gateway.audit.event import Control
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.onnx_models import write_linear
from tests.e2e.wire import Wire, infer

ROUTE = "routes/linear"
REQUEST = infer("linear", [[1.0, 2.0, 3.0, 4.0]])
CONNECTIONS = 12
WITHIN_S = 60.0


def variants(canary_bp: int, *, primary: str = "2", canary: str = "1") -> list[dict[str, Any]]:
    """The primary, and a canary that has `canary_bp` of its traffic."""
    return [
        {"name": "primary", "version": primary, "role": "primary", "weight_bp": 10_000 - canary_bp},
        {"name": "canary", "version": canary, "role": "canary", "weight_bp": canary_bp},
    ]


@contextmanager
def serving_two(base: Path, settings: Sequence[str] = (), workers: int = 2) -> Iterator[Gateway]:
    """A gateway over both versions, with the route that it makes itself."""
    write_linear(base / "models", version="1", scale=0.25)
    write_linear(base / "models", version="2", scale=0.5)
    with Gateway(base / "models", base / "state", workers=workers, settings=settings) as serving:
        yield serving


def split(gateway: Gateway, wanted: list[dict[str, Any]]) -> Reply:
    """Set the variants, as soon as every worker holds their versions warm."""
    deadline = time.monotonic() + WITHIN_S
    body = {"variants": wanted, "reason": "two versions"}
    while (reply := gateway.admin("PUT", ROUTE, body, revision=revision(gateway))).status not in (200, 202):
        assert time.monotonic() < deadline, reply
        time.sleep(0.1)
    return reply


def route(gateway: Gateway) -> dict[str, Any]:
    """The route as the admin listener shows it."""
    reply = gateway.admin("GET", ROUTE)
    assert reply.status == 200, reply
    return dict(reply.content)


def revision(gateway: Gateway) -> int:
    """Where the route stands."""
    return int(route(gateway)["revision"])


def canary_bp(document: dict[str, Any]) -> int:
    """What the canary has, by a route or by a control event's document."""
    return int(next(v["weight_bp"] for v in document["variants"] if v["name"] == "canary"))


def shift(gateway: Gateway, weight_bp: int, at: int | None = None) -> Reply:
    """Give the canary so much, at the present revision or at another."""
    body = {"weights_bp": {"canary": weight_bp}, "reason": "test"}
    return gateway.admin("POST", f"{ROUTE}/shift", body, revision=revision(gateway) if at is None else at)


def change(gateway: Gateway, method: str, path: str, body: dict[str, Any]) -> Reply:
    """Any change at the present revision; it has a reason if it names none."""
    return gateway.admin(method, path, {"reason": "test", **body}, revision=revision(gateway))


def controls(gateway: Gateway) -> list[Control]:
    """Control's events of this model, in order, by source and number."""
    feed = SpoolFeed(gateway.state_dir / "spool")
    found: list[Control] = []
    try:
        while events := feed.read(10_000, 0).events:
            found += [event for event in events if isinstance(event, Control) and event.model == "linear"]
    finally:
        feed.close()
    return found


def within(condition: Callable[[], bool], wait_s: float = 60) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {wait_s:g} s"
        time.sleep(0.05)


def ask(wire: Wire, count: int) -> Counter[tuple[str, str]]:
    """(source of the worker, version) of `count` answers."""
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(count):
        reply = wire.exchange(REQUEST)
        assert reply.status == 200, reply.body
        source = reply.fields["x-prediction-id"].split("-")[0]
        seen[source, json.loads(reply.body)["model_version"]] += 1
    return seen


def connections_to_both(gateway: Gateway) -> list[Wire]:
    """`CONNECTIONS` connections, at least two of them to each of two workers."""
    held: dict[str, list[Wire]] = {}
    for _ in range(500):
        wire = Wire(gateway.data_url)
        ((source, _),) = ask(wire, 1)
        held.setdefault(source, []).append(wire)
        counts = [len(wires) for wires in held.values()]
        if len(counts) == 2 and min(counts) >= 2 and sum(counts) >= CONNECTIONS:
            break
    else:
        pytest.fail(f"connections go to one worker only: {[len(w) for w in held.values()]}")
    few, many = sorted(held.values(), key=len)
    few = few[: CONNECTIONS // 2]
    kept = CONNECTIONS - len(few)
    for wire in many[kept:]:
        wire.close()
    return [*few, *many[:kept]]
