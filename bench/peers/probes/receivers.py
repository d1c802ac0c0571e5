"""Receivers: where a product's log goes, and how it is taken away: a Kafka broker, an HTTP receiver, a file.

Each can be killed with -9, started again at the same address over the same data, and read back for marks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Protocol

from bench.kafka import Broker
from bench.peers.probes.marks import found, found_below
from bench.peers.processes import Guard, free_port

_ROOT = Path(__file__).resolve().parents[3]
_START_S = 10.0
_READ_MS = 500


class Receiver(Protocol):
    """Takes a product's log."""

    kind: str
    """In words."""
    address: str | None
    """What the product is told; None: it writes files."""
    can_be_killed: bool

    def start(self) -> None:
        """Start it, or start it again."""

    def kill9(self) -> None:
        """Kill it."""

    def arrived(self) -> list[int]:
        """Numbers of the marks that it has, one for each time that they came."""

    def stop(self) -> None:
        """End it."""


def _guarded(pid: int) -> Guard:
    """A guard of a process that leads a session: it does not outlive this process."""
    guard = Guard(uuid.uuid4().hex)
    guard.watch(pid)
    return guard


def _dismiss(guard: Guard | None) -> None:
    if guard is not None:
        guard.dismiss()


class _GuardedBroker(Broker):
    """It does not outlive this process, not even while it is still starting."""

    guard: Guard | None = None

    def spawned(self, pid: int) -> None:
        """Guard it from its first moment: it takes up to a minute to answer."""
        self.guard = _guarded(pid)

    def dismiss(self) -> None:
        """It has ended."""
        _dismiss(self.guard)
        self.guard = None


class KafkaReceiver:
    """A real broker; every record of every topic but Kafka's own is read.

    Raises:
        KafkaAbsent: it is not to be had here.
    """

    kind = "a Kafka broker"
    can_be_killed = True

    def __init__(self, directory: Path) -> None:
        self._broker = _GuardedBroker(directory)
        self.address: str | None = self._broker.bootstrap

    def start(self) -> None:
        """Start it; returns once it answers. When it does not, nothing of it is left."""
        try:
            self._broker.start()
        except BaseException:
            self.kill9()
            raise

    def kill9(self) -> None:
        """SIGKILL."""
        self._broker.kill9()
        self._broker.dismiss()

    def arrived(self) -> list[int]:
        """Read everything from the beginning.

        Raises:
            ConnectionError: the broker does not answer.
        """
        from aiokafka.errors import KafkaError

        try:
            values = asyncio.run(_records(self._broker.bootstrap))
        except KafkaError as exc:
            msg = f"the broker does not answer: {exc!r}"
            raise ConnectionError(msg) from exc
        return [number for value in values for number in found(value)]

    def stop(self) -> None:
        """Controlled shutdown."""
        self._broker.stop()
        self._broker.dismiss()


async def _records(bootstrap: str) -> list[bytes]:
    from aiokafka import AIOKafkaConsumer

    looking = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await looking.start()
    try:
        topics = sorted(topic for topic in await looking.topics() if not topic.startswith("__"))
    finally:
        await looking.stop()
    values: list[bytes] = []
    if not topics:
        return values
    # Without a group all partitions of these topics are this consumer's once it is started.
    consumer = AIOKafkaConsumer(
        *topics, bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        parts = sorted(consumer.assignment())
        ends = await consumer.end_offsets(parts)
        await consumer.seek_to_beginning(*parts)
        while any([await consumer.position(part) < end for part, end in ends.items()]):
            for records in (await consumer.getmany(*parts, timeout_ms=_READ_MS)).values():
                values += [record.value for record in records if record.value is not None]
    finally:
        await consumer.stop()
    return values


class HttpReceiver:
    """`bench.peers.probes.sink` as a process."""

    kind = "an HTTP receiver"
    can_be_killed = True

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "received"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self.address: str | None = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it; returns once it takes connections.

        Raises:
            OSError: its port is somebody else's by now.
            TimeoutError: it takes none.
        """
        # Somebody else's listener would look like it.
        socket.create_server(("127.0.0.1", self._port)).close()
        command = [sys.executable, "-m", "bench.peers.probes.sink"]
        command += ["--port", str(self._port), "--file", str(self._file)]
        self._process = subprocess.Popen(  # noqa: S603
            command, cwd=_ROOT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._guard = _guarded(self._process.pid)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return
            time.sleep(0.05)
        msg = f"the receiver does not take connections within {_START_S:g} s"
        raise TimeoutError(msg)

    def pids(self) -> list[int]:
        """Its process and that process's guard, while it runs."""
        return [one.pid for one in (self._process, self._guard) if one is not None]

    def kill9(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None
        _dismiss(self._guard)
        self._guard = None

    def arrived(self) -> list[int]:
        """What its file holds."""
        return found(self._file.read_bytes()) if self._file.exists() else []

    def stop(self) -> None:
        """End it."""
        self.kill9()


class FileReceiver:
    """Files below a server's home: nothing that could be killed."""

    kind = "files on its own disk"
    address: str | None = None
    can_be_killed = False

    def __init__(self, home: Path) -> None:
        self._home = home

    def start(self) -> None:
        """Nothing."""

    def kill9(self) -> None:
        """Nothing."""

    def arrived(self) -> list[int]:
        """Distinct marks in all files."""
        return sorted({number for numbers in found_below(self._home).values() for number in numbers})

    def stop(self) -> None:
        """Nothing."""
