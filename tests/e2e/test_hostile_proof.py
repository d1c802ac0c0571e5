"""The long proof that no client can hurt the gateway: 1e5 hostile exchanges, ten thousand idle sockets.

`HOSTILE_COUNT` and `HOSTILE_SEED` change how many and which.
"""

from __future__ import annotations

import itertools
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvloop

from bench.serving import Gateway
from tests.e2e.hostile_clients import Beside, Told, play, rss_bytes
from tests.e2e.hostile_exchanges import exchanges
from tests.e2e.onnx_models import write_linear
from tests.e2e.wire import Wire, infer

COUNT = int(os.environ.get("HOSTILE_COUNT", "100000"))
SEED = int(os.environ.get("HOSTILE_SEED", "1"))
ROUNDS = 4
GOOD_RATE = 200
IDLE_SOCKETS = 10_000
QUIET_S = 15
STALL_MS = 50


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """One worker with short timeouts, as many connections as by default."""
    write_linear(tmp_path / "models")
    settings = ("data.header_timeout_s=1", "data.body_timeout_s=1", "data.write_timeout_s=1")
    made = Gateway(tmp_path / "models", tmp_path / "state", settings=settings).start()
    yield made
    assert made.stop() == 0, made.said()


@pytest.mark.prove
def test_a_hundred_thousand_hostile_exchanges_hurt_nobody(gateway: Gateway) -> None:
    """Only 2xx, 4xx and 503; the same worker; its memory flat; no stall; good clients keep 95% of their goodput."""
    (pid,) = gateway.pids("worker")
    told, quiet, hostile, memory = Told(), [], [], []
    for i in range(ROUNDS):
        quiet.append(Beside(gateway.data_url, pid, QUIET_S, GOOD_RATE).told())
        beside = Beside(gateway.data_url, pid, 900, GOOD_RATE)
        uvloop.run(play(gateway.data_url, exchanges(SEED + i, COUNT // ROUNDS), told, at_once=192))
        hostile.append(beside.told(now=True))
        memory.append(rss_bytes(pid))
        print(f"round {i}: quiet {quiet[-1]} hostile {hostile[-1]} rss {memory[-1] >> 20} MiB", flush=True)
    print(told.statuses, told.kinds)
    assert told.bad == []
    assert sum(told.kinds.values()) == COUNT // ROUNDS * ROUNDS
    assert gateway.pids("worker") == [pid]
    assert [seen["wrong"] for seen in quiet + hostile] == [[]] * ROUNDS * 2
    for before, beside_it in zip(quiet, hostile, strict=True):
        assert beside_it["good"] / beside_it["sent"] >= 0.95 * before["good"] / before["sent"]
        assert beside_it["worker_stall_ms"] <= beside_it["bare_stall_ms"] + STALL_MS
    # The first round is the warm-up: what ONNX Runtime and the allocator keep.
    assert memory[-1] <= memory[0] * 1.1


@pytest.mark.prove
def test_ten_thousand_idle_sockets_leave_room(gateway: Gateway) -> None:
    """Sockets that say nothing make room for those that ask; clients that ask go on."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE_SOCKETS + 500:
        pytest.skip(
            f"{hard} open files allowed; {IDLE_SOCKETS + 500} needed: raise the hard limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    (pid,) = gateway.pids("worker")
    parts = urlsplit(gateway.data_url)
    message = infer("linear", [[1, 2, 3, 4]])
    sources = itertools.cycle(f"127.0.0.{i}" for i in range(2, 12))
    idle = []
    before = rss_bytes(pid)
    beside = Beside(gateway.data_url, pid, 900, GOOD_RATE)
    time.sleep(3)
    for _ in range(IDLE_SOCKETS):
        sock = socket.socket()
        sock.bind((next(sources), 0))
        sock.connect((parts.hostname, parts.port))
        idle.append(sock)
    deadline = time.monotonic() + 10
    while not _asks(gateway.data_url, message):
        assert time.monotonic() < deadline, "no room for a client that asks"
        time.sleep(0.1)
    seen = beside.told(now=True)
    print(seen, f"rss {before >> 20} -> {rss_bytes(pid) >> 20} MiB")
    assert seen["good"] >= 0.95 * seen["sent"]
    assert seen["worker_stall_ms"] <= seen["bare_stall_ms"] + STALL_MS
    assert gateway.pids("worker") == [pid]
    for sock in idle:
        sock.close()


def _asks(url: str, message: bytes) -> bool:
    try:
        with Wire(url) as wire:
            return wire.exchange(message).status == 200
    except ConnectionError:
        return False
