"""The way into the ring for events that had no run: sums, order, and what does not fit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

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
