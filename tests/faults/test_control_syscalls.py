"""Control killed at the calls that it makes in a change: old or new, as the log says, and what was answered stands."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway.audit.event import Control
from gateway.audit.recorder import Places, Recorder
from gateway.audit.spool_feed import SpoolFeed
from gateway.control.recovery import recover
from gateway.control.state import route_document
from gateway.fleet import READY, SERVING, Fleet
from gateway.routing import Route
from tests.faults.changing import GATEWAY_ID, MAKERS, MODEL
from tests.faults.syscalls import FILE_CALLS, called, kill_at, under_strace
from tests.gateway.audit.sim import ROOT, forget_recorder, recording
from tests.gateway.control.plane import Plane
from tests.gateway.control.test_control_recovery import forget, shift

WAIT, WAITS = "epoll_wait", 10
"""Between its steps a change waits: for the log, for the workers."""
CALLS = f"{FILE_CALLS},{WAIT},link,linkat"
SAMPLE = 20
"""The normal suite takes so many points, over all kinds."""
KINDS = ("shift", "freeze", "stop", "promote")
LIVES = 3


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory: what survives a kill does not depend on the disk, and syncs take no time."""
    where = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))  # noqa: S108
    yield where
    shutil.rmtree(where)


@pytest.fixture
def base(place: Path) -> Path:
    """A state directory whose route is at revision 2, a hundredth on a canary, all of it drained."""
    plane = Plane(place / "base", workers=1)
    plane.record()

    async def run() -> None:
        async with plane.alive():
            await plane.begin("1", "2")

    asyncio.run(run())
    shift(plane)
    plane.writer.close()
    forget(plane)
    assert plane.recorder is not None
    for _ in range(8):
        plane.recorder.step()
    forget_recorder(plane.recorder)
    # Python compiles what it never ran before: the calls of a first life are not those of others.
    first = Life(plane.state_dir, place / "first", "shift")
    assert first.live() == 0, first.said.read_text()
    first.check()
    return plane.state_dir


class Life:
    """A copy of the base in which control lives once."""

    def __init__(self, base: Path, state_dir: Path, kind: str) -> None:
        shutil.copytree(base, state_dir)
        self.state_dir = state_dir
        self.kind = kind
        self.before = self.route()
        ring = state_dir / "ring"
        shutil.rmtree(ring)
        ring.mkdir()
        self.fleet = Fleet.create(ring / "fleet", 1)
        self.fleet.worker(0)[words_of.STATE] = SERVING
        for slot in range(8):
            self.fleet.slot(0, slot)[words_of.LOAD_STATE] = READY
        self.recorder = recording(Recorder(Places(state_dir, ring), GATEWAY_ID, 1 << 20))
        self.said = state_dir / "said"

    def live(self, prefix: Sequence[str] = ()) -> int:
        """From start to end, or to the kill; recorder and worker run beside it. Its exit status."""
        command = [
            *prefix,
            sys.executable,
            "-P",
            "-m",
            "tests.faults.changing",
            str(self.state_dir),
            self.kind,
        ]
        with self.said.open("wb") as out:
            child = subprocess.Popen(
                command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            while child.poll() is None:
                self.recorder.step()
                self.fleet.worker(0)[words_of.GENERATION] = self.fleet.generation
        finally:
            child.kill()
        return child.wait()

    def route(self) -> Route:
        """What a successor begins with."""
        state = recover(self.state_dir / "control" / "snapshot", self.state_dir / "spool", GATEWAY_ID)
        return state.serving.routes[MODEL]

    def check(self) -> None:
        """Old or new, never between; new if it was answered; and the log's last word says the same."""
        for _ in range(8):
            self.recorder.step()
        forget_recorder(self.recorder)
        after = self.route()
        made = MAKERS[self.kind](self.before, after.changed)
        assert after in (self.before, made), after
        if "acknowledged" in self.said.read_text():
            assert after.revision == self.before.revision + 1
        events = SpoolFeed(self.state_dir / "spool").read(100_000, 0).events
        last = [e for e in events if isinstance(e, Control) and e.revision][-1]
        assert (last.revision, last.after and last.after["variants"]) == (
            after.revision,
            [*_plain(after)["variants"]],  # type: ignore[misc]
        )
        assert self.route() == after


def _plain(route: Route) -> dict[str, object]:
    """As it comes back from an event."""
    import msgspec  # noqa: PLC0415

    plain: dict[str, object] = msgspec.msgpack.decode(msgspec.msgpack.encode(route_document(route)))
    return plain


def points(base: Path, place: Path, kind: str) -> list[tuple[str, int]]:
    """Every call from the one that says `ready` on, and its number of its kind."""
    life = Life(base, place / f"whole-{kind}", kind)
    assert life.live(under_strace(trace=place / f"trace-{kind}", calls=CALLS)) == 0, life.said.read_text()
    life.check()
    calls = list(called(place / f"trace-{kind}"))
    first = next(
        i for i, (call, _, arguments) in enumerate(calls) if call == "write" and '"ready' in arguments
    )
    return [(call, n) for call, n, _ in calls[first:]]


def _files(found: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    return [point for point in found if point[0] != WAIT]


def killed_at(base: Path, place: Path, kind: str, found: Sequence[tuple[str, int]]) -> int:
    """A life for each point; returns how many were killed at calls that change files.

    On a busy machine a life makes fewer calls than the one that was traced, since it finds more done each time that it
    looks. One that ended before its point lives again.
    """
    killed = 0
    for number, (call, n) in enumerate(found):
        for _ in range(1 if call == WAIT else LIVES):
            life = Life(base, place / f"{kind}-{number}", kind)
            status = life.live(under_strace(kill_at(call, n)))
            assert status in {0, -signal.SIGKILL}, (call, n, life.said.read_text())
            life.check()
            shutil.rmtree(life.state_dir)
            if status != 0:
                killed += call != WAIT
                break
    return killed


def test_a_kill_at_some_calls_of_a_change_leaves_old_or_new(base: Path, place: Path) -> None:
    """kill -9 at a sample of the calls of each kind of change; `make prove` takes each."""
    for kind in KINDS:
        found = points(base, place, kind)
        sample = found[:: max(len(found) * len(KINDS) // SAMPLE, 1)]
        assert killed_at(base, place, kind, sample) > len(_files(sample)) * 0.8


@pytest.mark.prove
@pytest.mark.parametrize("kind", [*KINDS, "rollback"])
def test_a_kill_at_every_call_of_a_change_leaves_old_or_new(base: Path, place: Path, kind: str) -> None:
    """kill -9 at every call from the first of the change to the end of the process."""
    found = points(base, place, kind)
    assert len(_files(found)) >= 15
    assert killed_at(base, place, kind, found) > len(_files(found)) * 0.9
