"""A monitor that stands still: an automatic canary keeps its traffic as long as its lease, and not a second more."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.serving import Gateway
from gateway.audit.event import Prediction
from tests.e2e.onnx_models import write_linear
from tests.e2e.wire import Wire, infer
from tests.faults.watched import admin, events_of, pid_of, until

AUTO, MANUAL = "linear", "byhand"
LEASE_S = 5
GRACE_S = 1.0
"""A worker takes 100 ms at most; these tests share their processors."""
VARIANTS = [
    {"name": "primary", "version": "1", "role": "primary", "weight_bp": 5_000},
    {"name": "canary", "version": "2", "role": "canary", "weight_bp": 5_000},
]
ANSWERS_MIN = 40
"""Of fewer than 31 any share is within so many deviations of a half."""
DEVIATIONS = 5.5
"""A fair coin is farther from a half than so many standard deviations once in twenty million times."""


class Seen(NamedTuple):
    """One answer: the version (None: none came), when it was asked and when it was there (epoch seconds)."""

    version: str | None
    asked_s: float
    had_s: float


class Asker:
    """Asks one model again and again, on a thread, some 80 times a second."""

    def __init__(self, url: str, model: str) -> None:
        self.seen: list[Seen] = []
        self._over = threading.Event()
        self._wire, self._request = Wire(url), infer(model, [[1.0, 2.0, 3.0, 4.0]])
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def between(self, start_s: float, end_s: float) -> Counter[str | None]:
        """Who answered what was asked and answered within."""
        return Counter(one.version for one in self.seen if start_s <= one.asked_s and one.had_s <= end_s)

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()
        self._thread.join(30)
        self._wire.close()

    def _ask(self) -> None:
        while not self._over.wait(0.01):
            asked_s = time.time()
            reply = self._wire.exchange(self._request)
            version = json.loads(reply.body)["model_version"] if reply.status == 200 else None
            self.seen.append(Seen(version, asked_s, time.time()))


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Two models of two equal versions, one under an automatic ramp and one by hand; both at a half, watched."""
    for model in (AUTO, MANUAL):
        write_linear(tmp_path / "models", model, "2")
        write_linear(tmp_path / "models", model, "1")
    settings = (
        "sidecar.tick_s=0.3",
        f"policy.{AUTO}.ramp=auto",
        f"policy.{AUTO}.lease_s={LEASE_S}",
        f"policy.{MANUAL}.ramp=manual",
        f"policy.{MANUAL}.lease_s={LEASE_S}",
    )
    with Gateway(tmp_path / "models", tmp_path / "state", workers=2, settings=settings) as serving:
        for model in (AUTO, MANUAL):
            _split(serving, model)
        yield serving


def _split(gateway: Gateway, model: str) -> None:
    for version in ("1", "2"):
        body = {"version": version, "reason": "a test"}
        assert admin(gateway, "POST", f"models/{model}/load", body) is not None
    route = {"variants": VARIANTS, "reason": "split"}

    def made() -> Any:
        revision = _route(gateway, model)["revision"]
        return admin(gateway, "PUT", f"routes/{model}", route, revision=revision)

    until("both versions are warm", made)


def _route(gateway: Gateway, model: str = AUTO) -> dict[str, Any]:
    found: dict[str, Any] = until("control answers", lambda: admin(gateway, "GET", f"routes/{model}"))
    return found


def _lease_end_s(gateway: Gateway) -> float:
    return float(_route(gateway)["variants"][1]["lease_until_ns"]) / 1e9


def _declared(route: dict[str, Any]) -> tuple[int, list[int]]:
    return route["revision"], [variant["weight_bp"] for variant in route["variants"]]


def _assert_half(answers: Counter[str | None]) -> None:
    count = answers.total()
    assert set(answers) == {"1", "2"}
    assert count >= ANSWERS_MIN
    assert abs(answers["2"] - count / 2) <= DEVIATIONS * math.sqrt(count) / 2


def test_a_dead_monitor_costs_an_automatic_canary_its_traffic_and_no_one_else(gateway: Gateway) -> None:
    """Stopped: the share stays until the lease is over, then the primary has it all; nothing fails, nothing else
    changes; going on brings it back. A canary that is shifted by hand keeps its share throughout."""
    renewed_from_s = _lease_end_s(gateway)
    until("the sidecar renews", lambda: _lease_end_s(gateway) > renewed_from_s)
    asked, by_hand = Asker(gateway.data_url, AUTO), Asker(gateway.data_url, MANUAL)
    before = _declared(_route(gateway))
    sidecar = pid_of(gateway, "sidecar")
    try:
        os.kill(sidecar, signal.SIGSTOP)
        stopped_s = time.time()
        time.sleep(GRACE_S)  # a renewal that was on its way
        end_s = _lease_end_s(gateway)
        assert end_s - stopped_s <= LEASE_S + GRACE_S
        time.sleep(max(0.0, end_s + GRACE_S + 1.5 - time.time()))
        assert _lease_end_s(gateway) == end_s
        assert _declared(_route(gateway)) == before == (before[0], [5_000, 5_000])
        resumed_s = time.time()
    finally:
        os.kill(sidecar, signal.SIGCONT)
    until("the lease is renewed", lambda: _lease_end_s(gateway) > resumed_s)
    renewed_s = time.time()
    time.sleep(GRACE_S + 1.5)
    asked.stop()
    by_hand.stop()
    _assert_half(asked.between(stopped_s, end_s))
    over = asked.between(end_s + GRACE_S, resumed_s)
    assert set(over) == {"1"}
    assert over.total() >= ANSWERS_MIN
    _assert_half(asked.between(renewed_s + GRACE_S, time.time()))
    assert None not in asked.between(0, time.time())
    _assert_half(by_hand.between(stopped_s, end_s))
    _assert_half(by_hand.between(end_s + GRACE_S, resumed_s))
    assert None not in by_hand.between(0, time.time())
    assert _declared(_route(gateway)) == before
    assert pid_of(gateway, "sidecar") == sidecar
    assert gateway.stop() == 0, gateway.said()
    _assert_logged_weights(gateway, (stopped_s, end_s, resumed_s))


def _assert_logged_weights(gateway: Gateway, times_s: tuple[float, float, float]) -> None:
    """Events carry the effective weight: a half each while the lease runs, all of it afterwards."""
    stopped_s, end_s, resumed_s = times_s
    held: dict[str, set[tuple[str | None, int | None, str]]] = {"leased": set(), "over": set()}
    for event in events_of(gateway):
        if not isinstance(event, Prediction) or event.route is None or event.model is None:
            continue
        if event.model.name != AUTO:
            continue
        at_s = event.received_ns / 1e9
        drawn = (event.route.assigned, event.route.weight_bp, event.route.reason)
        if stopped_s <= at_s < end_s - 0.05:
            held["leased"].add(drawn)
        elif end_s + GRACE_S <= at_s < resumed_s:
            held["over"].add(drawn)
    assert held["leased"] == {("primary", 5_000, "weight"), ("canary", 5_000, "weight")}
    assert held["over"] == {("primary", 10_000, "weight")}
