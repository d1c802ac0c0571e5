"""A client that floods, in small: it is refused, others are served as before. In full: `bench limits --case flood`."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from bench import load
from bench.cases.flood import SETTINGS
from bench.load import Plan
from bench.outcome import Outcome
from bench.partners import Flood
from bench.requests import Requests, Target, Tensor
from bench.serving import Gateway
from gateway.admission import HOLD_BACK_S
from tests.e2e.onnx_models import write_linear

TARGET = Target("linear", (Tensor("X", "FP32", (-1, 4)),))
RATIO_MAX, NOISE_MS = 2.0, 5.0
"""In the suite's company: the machine's other work is in both."""


CONNECTIONS = 32


def flooded(gateway: Gateway, body_file: Path, plan: Plan, requests: Requests) -> tuple[Outcome, int]:
    """The others beside a flood; and how many refusals it got, no more than its connections' rests allow."""
    began = time.monotonic()
    client = Flood(gateway.data_url, TARGET.path, body_file, connections=CONNECTIONS)
    try:
        outcome = load.run(plan, requests=requests)
    finally:
        got = client.end()
    assert got["429"] <= CONNECTIONS * ((time.monotonic() - began) / HOLD_BACK_S + 1)
    return outcome, got["429"]


def served(directory: Path, door: str) -> tuple[Gateway, Requests, Path]:
    """A gateway with the case's limits, requests, and a file with one of their bodies."""
    write_linear(directory / "models")
    requests = Requests(TARGET, count=100)
    body_file = directory / "body"
    body_file.write_bytes(requests.parts[0][0].partition(b"\r\n\r\n")[2])
    # Fewer than in the case: what the flood is refused must not depend on how much a busy machine lets it ask.
    settings = (*SETTINGS, 'limits.default={"per_s":10}', f"data.door={door}")
    return Gateway(directory / "models", directory / "state", settings=settings), requests, body_file


def plan_of(gateway: Gateway) -> Plan:
    """What others ask, in a second."""
    return Plan(url=gateway.data_url, target=TARGET, seconds=1, per_second=200, ready=8, connections=16)


def test_who_never_waits_is_slowed_at_the_starlette_door_too(tmp_path: Path) -> None:
    """Refusals there cost more: their answers wait."""
    gateway, requests, body_file = served(tmp_path, "starlette")
    with gateway:
        outcome, refused = flooded(gateway, body_file, plan_of(gateway), requests)
    assert refused
    assert outcome.errors == {}


def test_others_do_not_notice_a_flood(tmp_path: Path) -> None:
    """Paired, in turn: p99 of others beside a client over its limit is about what it is without; none is refused."""
    gateway, requests, body_file = served(tmp_path, "fast")
    alone, beside = [], []
    with gateway:
        plan = plan_of(gateway)
        for _ in range(3):
            alone.append(load.run(plan, requests=requests))
            outcome, refused = flooded(gateway, body_file, plan, requests)
            beside.append(outcome)
            assert refused
    assert [one.errors for one in beside] == [{}] * 3
    quiet = median(one.latency_ms.p99 for one in alone if one.latency_ms)
    # What a neighbour on the machine took in one of the rounds is not the flood's.
    loud = min(one.latency_ms.p99 for one in beside if one.latency_ms)
    assert loud <= max(RATIO_MAX * quiet, quiet + NOISE_MS), (quiet, loud)
