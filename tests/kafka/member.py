"""A member of a consumer group in a process of its own, that reads and commits when told: `read`, `commit` on stdin.

python -m tests.kafka.member BOOTSTRAP TOPIC GROUP
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from gateway.audit import kafka_feed
from gateway.audit.kafka_feed import KafkaFeed

SESSION_MS = 1500
"""Long beside what a busy machine keeps a member waiting for a processor."""
ROOT = Path(__file__).resolve().parents[2]


class Member:
    """Such a process, as its test sees it."""

    def __init__(self, bootstrap: str, topic: str, group: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.kafka.member", bootstrap, topic, group],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def tell(self, what: str) -> None:
        """Say what to do."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n".encode())
        self.process.stdin.flush()

    def answer(self, wait_s: float = 30.0) -> object:
        """What came of it."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], wait_s)[0], "the member does not answer"
        return json.loads(self.process.stdout.readline())

    def read(self, count: int) -> list[str]:
        """Ids of as many events."""
        found: list[str] = []
        deadline = time.monotonic() + 30
        while len(found) < count and time.monotonic() < deadline:
            self.tell("read")
            found += self.answer()  # type: ignore[operator]
        return found

    def end(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def main() -> None:
    """Do what is told."""
    kafka_feed.SESSION_MS = SESSION_MS
    feed = KafkaFeed(sys.argv[1], sys.argv[2], group=sys.argv[3])
    for line in sys.stdin:
        said: object = feed.commit() if line.strip() == "commit" else None
        if said is None:
            said = [event.id for event in feed.read(1000, 1000).events]
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
