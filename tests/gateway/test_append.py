"""The way into the ring for events that had no run: sums, order, and what does not fit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.audit.event import Gap, ModelFacts
from gateway.audit.event import Model as ModelEvent
from tests.gateway.path import Path_


def failed(reason: str) -> ModelEvent:
    """An event as long as its reason."""
    return ModelEvent(kind="failed", model=ModelFacts(name="m", version="1"), reason=reason)


def number(event: Any) -> int:
    return int(event.id[-16:], 16)


def test_events_that_share_no_frame_are_appended_one_by_one(tmp_path: Path) -> None:
    """Ten events that together exceed a frame: all are in the log, in order."""

    async def main() -> None:
        path = Path_(tmp_path, ring_bytes=64 * 1024)
        for n in range(10):
            path.appender.log(failed(str(n) * 2000))
        path.appender.flush()
        logged = [event for event in path.events() if isinstance(event, ModelEvent)]
        assert [event.reason[0] for event in logged] == list("0123456789")
        assert path.appender.gaps == 0
        path.close()

    asyncio.run(main())


def test_an_event_that_no_frame_takes_is_a_gap(tmp_path: Path) -> None:
    """It alone is lost, its number is in a gap, and what came with it is in the log."""

    async def main() -> None:
        path = Path_(tmp_path, ring_bytes=64 * 1024)
        for size in (1, 9000, 2):
            path.appender.log(failed("r" * size))
        path.appender.flush()
        logged = path.events()
        assert [len(e.reason) for e in logged if isinstance(e, ModelEvent)] == [1, 2]
        (gap,) = [event for event in logged if isinstance(event, Gap)]
        lost = set(range(gap.from_seq, gap.to_seq + 1))
        assert len(lost) == path.appender.gaps == 1
        assert {number(event) for event in logged} | lost == set(range(path.ring.assigned))
        path.close()

    asyncio.run(main())


class Frames:
    """A path with a ring that is full, and how long each frame waits before it is released."""

    def __init__(self, tmp_path: Path, *settings: str) -> None:
        self.now_ms = 0
        self.path = Path_(tmp_path, "audit.append_timeout_ms=50", *settings, ring_bytes=64 * 1024)
        self.appender = self.path.appender
        self.appender._clock_ns = lambda: self.now_ms * 1_000_000
        self.levels: list[tuple[int, str]] = []

    def fill(self) -> None:
        """Until not even a gap fits."""
        while self.path.ring.append(b"x" * 200, 1) >= 0:
            pass

    def submit(self) -> None:
        """One frame of one request."""
        self.appender.submit(b"x" * 300, 1, lambda _, level: self.levels.append((self.now_ms, level)))

    def turn(self, until_ms: int) -> None:
        """The timer that tries again, each millisecond."""
        while self.now_ms < until_ms:
            self.now_ms += 1
            self.appender._retry()


def test_only_the_first_frames_wait_for_a_recorder_that_moves_nothing(tmp_path: Path) -> None:
    """One append timeout, once: those that come later are told by a gap at once, until the recorder moves."""

    async def main() -> None:
        frames = Frames(tmp_path)
        frames.fill()
        frames.submit()
        frames.turn(20)
        frames.submit()
        assert frames.levels == []
        frames.turn(50)
        assert frames.levels == [(50, "none"), (50, "none")], (
            "the second waits in vain no longer than the first"
        )
        frames.submit()
        assert frames.levels[2:] == [(50, "none")]
        assert frames.appender.unavailable
        frames.path.ring.set_synced(frames.path.ring.committed)
        assert not frames.appender.unavailable
        frames.submit()
        assert frames.levels[3:] == [(50, "spool")]
        frames.path.close()

    asyncio.run(main())


def test_a_mark_that_moves_behind_the_last_try_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorder drains all between a frame's last try and its giving up: those that come next are not refused."""

    async def main() -> None:
        frames = Frames(tmp_path, "audit.on_unavailable=fail")
        frames.fill()
        frames.submit()
        frames.turn(49)
        ring, writer = frames.path.ring, frames.appender._writer

        def late(*_: object) -> None:
            ring.set_synced(ring.committed)

        with monkeypatch.context() as patch:
            patch.setattr(writer, "append_run", late)
            frames.turn(50)
        assert frames.levels == [(50, "")]
        assert not frames.appender.unavailable
        frames.path.close()

    asyncio.run(main())


def test_a_short_stall_costs_no_record(tmp_path: Path) -> None:
    """The recorder moves within the timeout: the frame gets its room, and its answer the level."""

    async def main() -> None:
        frames = Frames(tmp_path, "audit.on_unavailable=fail")
        frames.fill()
        frames.submit()
        frames.turn(45)
        frames.path.ring.set_synced(frames.path.ring.committed)
        frames.turn(46)
        assert frames.levels == [(46, "spool")]
        assert frames.appender.gaps == 0
        frames.path.close()

    asyncio.run(main())


def test_nobody_waits_while_the_recorder_cannot_write(tmp_path: Path) -> None:
    """`unavailable` in the ring: what has room goes in, what has none is decided at once, those that wait too."""

    async def main() -> None:
        frames = Frames(tmp_path)
        frames.path.ring.set_unavailable(True)
        frames.submit()
        assert frames.levels == [(0, "spool")]
        frames.path.ring.set_unavailable(False)
        frames.fill()
        frames.submit()
        frames.path.ring.set_unavailable(True)
        frames.submit()
        assert frames.levels[1:] == [(0, "none"), (0, "none")]
        assert frames.appender.held == 0
        frames.path.close()

    asyncio.run(main())


def test_a_sync_is_not_awaited_while_the_recorder_cannot_write(tmp_path: Path) -> None:
    """Under `degrade` the answer says `spool` at once; under `fail` what was taken in waits for its time."""

    async def main() -> None:
        frames = Frames(tmp_path, "audit.sync_timeout_ms=100")
        frames.path.ring.set_unavailable(True)
        told: list[tuple[str, bool]] = []
        frames.submit()
        frames.appender.after_sync(lambda synced: told.append(("degrade", synced)), fails=False)
        assert told == [("degrade", False)]
        frames.appender.after_sync(lambda synced: told.append(("fail", synced)), fails=True)
        frames.turn(99)
        assert len(told) == 1
        frames.turn(100)
        assert told[1:] == [("fail", False)]
        frames.path.close()

    asyncio.run(main())
