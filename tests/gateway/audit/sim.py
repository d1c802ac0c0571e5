"""A gateway's log in one directory: owners that append, and recorders that can be killed in-process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway import config
from gateway.audit.event import Event, Feedback
from gateway.audit.recorder import Places, Recorder
from gateway.audit.source import claim_source
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.storage import DISK, Disk, Storage
from gateway.audit.verify import Report, verify
from gateway.audit.writer import Writer
from gateway.process import Context

GATEWAY_ID = "00112233aabbccdd"
ROOT = Path(__file__).resolve().parents[3]


_ALIVE: dict[int, Writer] = {}
"""Writers of this process that no test has let go of: each holds a mapping and two locks."""
_RECORDING: dict[int, Recorder] = {}
"""Recorders of this process, likewise."""


class Killed(BaseException):
    """kill -9, as far as one process can have it."""


class Log:
    """One state directory with its rings."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.ring_dir = state_dir / "ring"
        self.ring_dir.mkdir(parents=True)
        self.spool = state_dir / "spool"
        self.places = Places(state_dir, self.ring_dir)
        self._children: dict[subprocess.Popen[bytes], Path] = {}

    def owner(self, role: str = "worker", ring_bytes: int = 65536) -> Writer:
        """A process that writes."""
        source = claim_source(self.state_dir, GATEWAY_ID, role, self.ring_dir, ring_bytes)
        return owning(Writer(source, GATEWAY_ID))

    def recorder(self, storage: Storage = DISK, segment_bytes: int = 4096) -> Recorder:
        """A recorder in this process."""
        return recording(Recorder(self.places, GATEWAY_ID, segment_bytes, storage))

    def child(self, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """A real process, killed at the end of the test; `output` is what it wrote. `prefix`: what it runs under."""
        path = self.state_dir / f"output-{len(self._children)}"
        with path.open("wb") as out:
            child = subprocess.Popen(
                [*prefix, sys.executable, "-P", *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT), **self.context()},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._children[child] = path
        return child

    def output(self, child: subprocess.Popen[bytes]) -> str:
        """What a child wrote so far."""
        return self._children[child].read_text()

    def context(self) -> dict[str, str]:
        """What the supervisor hands to its children."""
        loaded, _ = config.load(None, [f"state_dir={self.state_dir}", "audit.segment_bytes=65536"], {})
        context = Context(
            config=config.encode(loaded),
            models="",
            state_dir=str(self.state_dir),
            gateway_id=GATEWAY_ID,
            ring_dir=str(self.ring_dir),
        )
        return {"TG_CONTEXT": context.to_env()["TG_CONTEXT"]}

    def real_recorder(self, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """The recorder's own process."""
        return self.child("-m", "gateway.audit.recorder", prefix=prefix)

    def end_children(self) -> None:
        """Kill what a test left."""
        for child in self._children:
            child.kill()
            child.wait()

    def rings(self) -> list[str]:
        """Names in the ring directory."""
        return sorted(path.name for path in self.ring_dir.iterdir())

    def verify(self) -> Report:
        """Continuity of the spool."""
        return verify(self.spool)

    def read(self) -> list[Event]:
        """Everything on disk."""
        return SpoolFeed(self.spool).read(1_000_000, 0).events

    def labels(self) -> list[int]:
        """The values of `label` events on disk, in order."""
        return [e.labels[0]["value"] for e in self.read() if isinstance(e, Feedback)]


def label(value: int, pad_bytes: int = 0) -> Feedback:
    """An event that can be told from others."""
    return Feedback(
        kind="label", at_ns=1, labels=[{"id": "x", "row": 0, "value": value, "pad": "p" * pad_bytes}]
    )


def owning(writer: Writer) -> Writer:
    """Let go of it with the test at the latest."""
    _ALIVE[id(writer)] = writer
    return writer


def recording(recorder: Recorder) -> Recorder:
    """Let go of it with the test at the latest."""
    _RECORDING[id(recorder)] = recorder
    return recorder


def forget_owner(writer: Writer) -> None:
    """The owner dies: its locks go, its ring stays."""
    _ALIVE.pop(id(writer), None)
    mapped = writer.ring.memory.obj
    writer.ring.release()
    mapped.close()  # holds a descriptor, and with it the lock, of its own
    for fd in writer.source.lock_fds:
        os.close(fd)


def alive() -> frozenset[int]:
    """Writers and recorders that are held now."""
    return frozenset((*_ALIVE, *_RECORDING))


def forget_since(before: frozenset[int]) -> None:
    """Let go of the recorders and writers made since: a suite of thousands would run out of descriptors."""
    for key in [key for key in _RECORDING if key not in before]:
        # What a test let go of in its own way is released already.
        with contextlib.suppress(ValueError):
            forget_recorder(_RECORDING[key])
    for key in [key for key in _ALIVE if key not in before]:
        with contextlib.suppress(ValueError):
            forget_owner(_ALIVE[key])


def forget_recorder(recorder: Recorder) -> None:
    """The recorder dies: locks and descriptors go, files stay as they are."""
    if _RECORDING.pop(id(recorder), None) is None:
        return
    for drain in recorder._drains.values():
        drain.close()
    forget_owner(recorder._own)


def settle(recorder: Recorder) -> None:
    """Steps until two in a row move nothing."""
    idle = 0
    while idle < 2:
        idle = 0 if recorder.step() else idle + 1


def stop(recorder: Recorder) -> None:
    """SIGTERM, with all owners gone."""
    settle(recorder)
    assert recorder.quiet
    recorder.close()


def until(condition: Callable[[], bool], wait_s: float = 60.0) -> None:
    """Wait for a real process."""
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


class FailingDisk(Disk):
    """A disk that refuses on demand: "write", "short" or "sync"."""

    def __init__(self) -> None:
        self.mode = ""
        self.failed_fds: list[int] = []

    def write(self, fd: int, data: memoryview) -> int:
        """write(2), or not."""
        if self.mode == "write":
            raise OSError(28, "No space left on device")
        return os.write(fd, data[: len(data) // 2] if self.mode == "short" else data)

    def sync(self, fd: int) -> None:
        """fdatasync(2), or not."""
        if self.mode == "sync":
            self.failed_fds.append(fd)
            raise OSError(5, "Input/output error")
        os.fdatasync(fd)
