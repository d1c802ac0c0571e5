"""A log that grows while a forwarder sends it through faults, and what a foreign client then demands of the topic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Message

from gateway.audit.forwarder import Forwarder
from tests.kafka.lived import Lived, check_contiguous, labels, read_topic, run_with, until

STEP = 40


class Flow:
    """A log that grows while it is sent; what came of it, as a client that is not ours reads it."""

    def __init__(self, directory: Path, bootstrap: str, timeout_ms: int = 500, **settings: Any) -> None:
        given = {"partitions": 2, "request_timeout_ms": timeout_ms, **settings}
        self.one = Lived(directory, bootstrap, **given)
        self.topic = self.one.kafka.topic
        self.forwarder: Forwarder = self.one.forwarder()
        self.written = 0

    def more(self, count: int = STEP, pad_bytes: int = 100) -> None:
        """Events, on disk."""
        for first in range(0, count, 100):
            size = min(100, count - first)
            self.one.append(*range(self.written, self.written + size), pad_bytes=pad_bytes)
            self.written += size

    async def sent(self) -> None:
        """All that is there."""
        await until(lambda: self.one.behind(self.forwarder) == 0)

    async def failed(self, times: int = 1) -> None:
        """Sending was begun anew so often from now on."""
        before = self.forwarder.retries
        await until(lambda: self.forwarder.retries >= before + times)

    def run(self, drive: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Some events, then `drive`, then some more, until all is sent."""

        async def around() -> None:
            self.more()
            await self.sent()
            await drive()
            self.more()
            await self.sent()

        run_with(self.forwarder, around)

    def check(self, bootstrap: str) -> int:
        """Nothing is missing and order holds; returns how many came twice, each a copy of the first."""
        messages = read_topic(bootstrap, self.topic)
        events = check_contiguous(messages, msgspec.msgpack.decode)
        assert labels(events) == list(range(self.written))
        return _doubles(messages)


def _doubles(messages: list[Message]) -> int:
    seen: dict[bytes, bytes] = {}
    before: dict[str, int] = defaultdict(lambda: -1)
    count = 0
    for message in messages:
        key, value = message.key(), message.value()
        epoch, seq = key.decode()[:25], int(key[26:], 16)
        # On by one, or back to where a resend begins.
        assert seq <= before[epoch] + 1, f"{epoch}: {seq} came behind {before[epoch]}"
        before[epoch] = seq
        if key in seen:
            assert seen[key] == value
            count += 1
        seen[key] = value
    return count
