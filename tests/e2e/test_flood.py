"""A client that floods is refused, others are served; what they notice of it, `bench limits --case flood` measures."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("door", ["fast", "starlette"])
def test_who_never_waits_is_slowed_and_no_other_refused(tmp_path: Path, door: str) -> None:
    """Refusals to who is over its limit wait, at both doors; others are answered, all of them."""
    gateway, requests, body_file = served(tmp_path, door)
    with gateway:
        outcome, refused = flooded(gateway, body_file, plan_of(gateway), requests)
    assert refused
    assert outcome.errors == {}
