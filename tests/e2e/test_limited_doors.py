"""Limits at both doors: the same answers, and a client behind a proxy counted by its own address."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.serving import Gateway
from gateway.admission import HOLD_BACK_S
from tests.e2e.onnx_models import write_linear
from tests.e2e.wire import RawReply, Wire, infer

ROW = [[1.0, 2.0, 3.0, 4.0]]
SETTINGS = ('limits.default={"per_s":0.01,"burst":2}', 'data.proxies=["127.0.0.1"]')


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gateway]]:
    """Two requests for each client, at either door."""
    base: Path = tmp_path_factory.mktemp("limited")
    write_linear(base / "models")
    made = {
        door: Gateway(base / "models", base / door, settings=(f"data.door={door}", *SETTINGS))
        for door in ("fast", "starlette")
    }
    try:
        yield {door: gateway.start() for door, gateway in made.items()}
        assert [gateway.stop() for gateway in made.values()] == [0, 0]
    finally:
        for gateway in made.values():
            gateway.kill9_all()


def asked(gateway: Gateway, client: str, times: int) -> list[RawReply]:
    """What one client gets on one connection."""
    with Wire(gateway.data_url) as wire:
        return [wire.exchange(infer("linear", ROW, x_forwarded_for=client)) for _ in range(times)]


def masked(reply: RawReply) -> bytes:
    """What does not differ from one refusal to the next."""
    return re.sub(rb"(?i)retry-after: \d+", b"retry-after: *", reply.masked())


def test_both_doors_refuse_with_equal_bytes(doors: dict[str, Gateway]) -> None:
    """Two answers, then 429, and the connection lives on; a client at another address is answered."""
    said = {}
    for door, gateway in doors.items():
        replies = asked(gateway, "203.0.113.1", 4)
        assert [reply.status for reply in replies] == [200, 200, 429, 429]
        assert all(int(reply.fields["retry-after"]) >= 60 for reply in replies[2:])
        assert [reply.status for reply in asked(gateway, "203.0.113.2", 1)] == [200]
        said[door] = [masked(reply) for reply in replies]
    assert said["fast"] == said["starlette"]


@pytest.mark.parametrize("door", ["fast", "starlette"])
def test_a_proxys_connection_does_not_rest(doors: dict[str, Gateway], door: str) -> None:
    """One client's refusals do not hold up those who share the proxy's connection."""
    client = f"203.0.113.{'3' if door == 'fast' else '4'}"
    took_s: list[float] = []
    with Wire(doors[door].data_url) as wire:
        for _ in range(22):
            began = time.monotonic()
            wire.exchange(infer("linear", ROW, x_forwarded_for=client))
            took_s.append(time.monotonic() - began)
    # Each of the last twenty would rest, whatever else the machine does.
    assert statistics.median(took_s) < HOLD_BACK_S, took_s
