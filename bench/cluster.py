"""Several brokers that replicate each other, on loopback: what one broker cannot show.

A leader that is killed, frozen past its session, or gone together with a second one. Beside `bench.kafka`, which has
the single one and says what is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.kafka import Broker, Setup, cluster_id, free_port


class Cluster:
    """Brokers that replicate each other: every node is broker and controller, on loopback.

    Args:
        directory: of all their data.
        nodes: three hold a topic of replication 3 with `min.insync.replicas` 2.
    """

    def __init__(self, directory: Path, nodes: int = 3, settings: Mapping[str, str] | None = None) -> None:
        seats = {node: free_port() for node in range(1, nodes + 1)}
        shared = cluster_id()
        self.brokers = {
            node: Broker(
                directory / f"node-{node}",
                setup=Setup(node=node, seats=seats, cluster=shared, settings=settings or {}),
            )
            for node in seats
        }

    @property
    def bootstrap(self) -> str:
        """All of them, for clients."""
        return ",".join(broker.bootstrap for broker in self.brokers.values())

    def start(self) -> Cluster:
        """All nodes at once: none answers before most are there.

        Raises:
            KafkaAbsent, TimeoutError: as `Broker.start`.
        """
        try:
            with ThreadPoolExecutor(len(self.brokers)) as pool:
                list(pool.map(Broker.start, self.brokers.values()))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End them all; none waits for another."""
        for broker in self.brokers.values():
            broker.thaw()
            broker.kill9()
