"""What is done to a gateway and its brokers while the ledger's client sends: kills of every process, outages of Kafka.

Each fault is a function of a `Scene`; it returns when what it broke stands again. Brokers are one `bench.kafka.Broker`
or several that replicate each other: what is done to the leader of one is done to the only one there is.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka.admin import AdminClient

from bench.kafka import Broker
from bench.serving import Gateway, child_pids
from tests.e2e.ledger import LedgerClient

FORWARDER_TIMEOUT_MS = 2000
"""`kafka.request_timeout_ms`: a frozen broker is given up after it."""
OUTAGE_REQUESTS = 2000
"""So many requests go out while a broker is away, against a spool that cannot be forwarded."""


class Scene(NamedTuple):
    """Who is hurt."""

    gateway: Gateway
    client: LedgerClient
    brokers: Any
    topic: str


Fault = Callable[[Scene], None]


def kill_of(role: str) -> Fault:
    """Kill -9 one process of a role and wait for its successor."""

    def kill(scene: Scene) -> None:
        killed = scene.gateway.kill9(role)
        scene.gateway.await_successor(role, killed)

    return kill


def kill_supervisor(scene: Scene) -> None:
    """Kill -9 the supervisor: its children die with it, and a new one begins on the same state directory."""
    below = tree(scene.gateway.pid)[1:]
    scene.client.url = None
    os.kill(scene.gateway.pid, signal.SIGKILL)
    _begin_anew(scene, below)


def kill_all(scene: Scene) -> None:
    """Kill -9 every process at once, workers first: none sees another die."""
    below = tree(scene.gateway.pid)
    scene.client.url = None
    for pid in reversed(below):
        os.kill(pid, signal.SIGKILL)
    _begin_anew(scene, below[1:])


def stop_brokers(scene: Scene) -> None:
    """A controlled shutdown of every node, and their start some requests later."""
    with _pool(scene) as pool:
        list(pool.map(Broker.stop, nodes(scene.brokers)))
        _go_on(scene)
        list(pool.map(Broker.restart, nodes(scene.brokers)))


def freeze_leader(scene: Scene) -> None:
    """SIGSTOP of a leader for longer than the forwarder waits: it may have taken what it did not acknowledge."""
    leader = leader_of(scene)
    leader.freeze()
    until_s = time.monotonic() + 1.5 * FORWARDER_TIMEOUT_MS / 1000
    _go_on(scene)
    # Real time: it is the broker's and the forwarder's timeouts that are to pass.
    time.sleep(max(until_s - time.monotonic(), 0))
    leader.thaw()


def kill_leader(scene: Scene) -> None:
    """Kill -9 of a leader: another one takes over, or its own log is recovered."""
    leader = leader_of(scene)
    leader.kill9()
    _go_on(scene)
    leader.restart()


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        found.extend(child_pids(parent))
    return found


def nodes(brokers: Any) -> list[Broker]:
    """The nodes of a cluster, or the one broker."""
    return [brokers] if isinstance(brokers, Broker) else list(brokers.brokers.values())


def leader_of(scene: Scene) -> Broker:
    """The leader of the topic's first partition."""
    if isinstance(scene.brokers, Broker):
        return scene.brokers
    admin = AdminClient({"bootstrap.servers": scene.brokers.bootstrap})
    deadline = time.monotonic() + 30
    while True:
        found = admin.list_topics(timeout=10).topics.get(scene.topic)
        if found is not None and found.partitions and found.partitions[0].leader > 0:
            return scene.brokers.brokers[found.partitions[0].leader]  # type: ignore[no-any-return]
        assert time.monotonic() < deadline, "the topic has no leader"
        time.sleep(0.1)


def _pool(scene: Scene) -> ThreadPoolExecutor:
    # All at once: a controller waits for most of the others.
    return ThreadPoolExecutor(len(nodes(scene.brokers)))


def _go_on(scene: Scene) -> None:
    scene.client.await_sent(scene.client.sent + OUTAGE_REQUESTS, timeout_s=120)


def _begin_anew(scene: Scene, pids: Sequence[int]) -> None:
    scene.gateway.kill9_all()
    await_gone(pids)
    scene.gateway.start()
    scene.client.url = scene.gateway.data_url


def await_gone(pids: Sequence[int], timeout_s: float = 10) -> None:
    """Wait until processes have ended; a zombie has.

    Raises:
        TimeoutError: names those that live on without their supervisor.
    """
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if _lives(pid)]:
        if time.monotonic() > deadline:
            msg = f"processes outlived their supervisor: {left}"
            raise TimeoutError(msg)
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
