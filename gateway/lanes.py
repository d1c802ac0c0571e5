"""Lanes: threads that run sessions whose runs are too costly for the event loop.

A lane takes one batch at a time; ONNX Runtime releases the GIL while it runs, so the loop goes on
reading and answering. Results come back to the loop with `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class Lanes:
    """A fixed set of lane threads.

    Args:
        loop: where completions run.
        count: threads.
        on_free: called on the loop after each job, when a lane is idle again.

    Threading: `submit` from the loop only; jobs run on lane threads and must not raise.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int, on_free: Callable[[], None]) -> None:
        self._loop = loop
        self._on_free = on_free
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.count = count
        self.idle = count
        self._threads = [
            threading.Thread(target=self._run, name=f"lane-{i}", daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job, done: Callable[[], None]) -> None:
        """Run `job` on an idle lane, then `done` on the loop. Only when `idle` > 0."""
        self.idle -= 1
        self._jobs.put(lambda: self._complete(job, done))

    def close(self) -> None:
        """Let the threads end after what they run."""
        for _ in self._threads:
            self._jobs.put(None)

    def _complete(self, job: Job, done: Callable[[], None]) -> None:
        job()
        self._loop.call_soon_threadsafe(self._freed, done)

    def _freed(self, done: Callable[[], None]) -> None:
        self.idle += 1
        try:
            done()
        finally:
            self._on_free()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
