"""What the cases of Kafka share: a broker of their own, and how far the topic is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from bench.cases.case import Bench
from bench.kafka import Broker, KafkaAbsent
from gateway.errors import ConfigInvalid


@contextlib.contextmanager
def local_broker(bench: Bench) -> Iterator[Broker]:
    """A broker of this case alone, on the generator's processor.

    Raises:
        ConfigInvalid: there is no Kafka to be had here.
    """
    try:
        broker = Broker(bench.scratch / "kafka").start()
    except KafkaAbsent as exc:
        raise ConfigInvalid(str(exc)) from exc
    try:
        if broker.pid is not None and bench.options.generator_cpu in os.sched_getaffinity(0):
            for thread in Path(f"/proc/{broker.pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(thread.name), {bench.options.generator_cpu})
        yield broker
    finally:
        broker.thaw()
        broker.kill9()


def acknowledged(state_dir: Path) -> int:
    """Records that the topic has, by the forwarder's positions."""
    try:
        entries = json.loads((state_dir / "forwarder" / "positions.json").read_bytes())
    except FileNotFoundError:
        return 0
    return sum(entry["next_seq"] for entry in entries.values())
