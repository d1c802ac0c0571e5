"""Lanes: threads that run sessions whose runs are too costly for the event loop.

A lane takes one batch at a time; ONNX Runtime releases the GIL while it runs, so the loop goes on
reading and answering. Results come back to the loop with `call_soon_threadsafe`. A lane whose run hangs is
given up: another thread takes its place, and the old one ends when its run does.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress


class Job:
    """A run on a lane: `work` there, then `done` on the loop; `until_ns` is when it should have ended."""

    __slots__ = ("done", "given_up", "until_ns", "work")

    def __init__(self, work: Callable[[], None], done: Callable[[], None], until_ns: int) -> None:
        self.work = work
        self.done = done
        self.until_ns = until_ns
        self.given_up = False
        """It hung: its lane was given to another thread."""


class Lanes:
    """A fixed number of lanes.

    Args:
        loop: where completions run.
        count: threads.
        on_free: called on the loop after each job, when a lane is idle again.

    Threading: all methods from the loop only; jobs run on lane threads and must not raise.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int, on_free: Callable[[], None]) -> None:
        self._loop = loop
        self._on_free = on_free
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._running: dict[Job, None] = {}
        self.count = count
        self.idle = count
        self.given_up = 0
        """Lanes lost to runs that hang; those that came back since are taken off."""
        self._started = 0
        for _ in range(count):
            self._start()

    def submit(self, job: Job) -> None:
        """Run a job on an idle lane. Only when `idle` > 0."""
        self.idle -= 1
        self._running[job] = None
        self._jobs.put(job)

    def wait_ns(self, now_ns: int) -> int:
        """When a lane should be free, from now. A job beyond its time is taken to need as much again."""
        if self.idle:
            return 0
        return min(abs(job.until_ns - now_ns) for job in self._running)

    def holds(self, job: Job) -> bool:
        """Whether the job has a lane."""
        return job in self._running

    def give_up(self, job: Job) -> None:
        """The job hangs: another thread takes its lane. Its `done` is called all the same if it ever ends."""
        del self._running[job]
        job.given_up = True
        self.given_up += 1
        self._start()
        self.idle += 1
        self._on_free()

    def close(self) -> None:
        """Let the threads end after what they run."""
        for _ in range(self.count):
            self._jobs.put(None)

    def _start(self) -> None:
        name = f"lane-{self._started}"
        self._started += 1
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _ended(self, job: Job) -> None:
        if job.given_up:
            # It ended while it was given up: one thread is too many now.
            self.given_up -= 1
            self._jobs.put(None)
            job.done()
            return
        del self._running[job]
        self.idle += 1
        try:
            job.done()
        finally:
            self._on_free()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.work()
            with suppress(RuntimeError):  # the loop is closed: a run that hung outlived the worker
                self._loop.call_soon_threadsafe(self._ended, job)
