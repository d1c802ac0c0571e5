"""A version's own settings of the log: they raise what the gateway's say, and never lower it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from path import Path_, Sink, SumSession, until

from gateway.errors import InvalidRequest
from gateway.head import LEVELS
from loaders.bundle import AuditSettings, BundleSettings


def session(**settings: Any) -> SumSession:
    """A version with these settings."""
    made = SumSession()
    made.bundle.settings = BundleSettings(**settings)
    return made


ASKED = (None, *LEVELS)
TABLE = [
    (gateway, version, policy, disk)
    for gateway in LEVELS
    for version in ASKED
    for policy in ("degrade", "fail", "version fails")
    for disk in ("in time", "late")
]
"""What holds for the gateway and a version; each is asked at every level, and with what ends well and badly."""


def highest(*levels: str | None) -> str:
    """The law: the highest of what gateway, version and request say."""
    return max((level for level in levels if level is not None), key=LEVELS.index)


async def replied(path: Path_, sinks: list[Sink], disk: str) -> list[Any]:
    """Turn until all are answered; the events, drained meanwhile or, where the disk is late, only then."""
    events: list[Any] = []

    def done() -> bool:
        if disk == "in time":
            events.extend(path.predictions())
        return all(sink.status for sink in sinks)

    await until(done)
    await asyncio.sleep(0)
    path.core.turn()
    return events + path.predictions()


@pytest.mark.parametrize(("gateway", "version", "policy", "disk"), TABLE)
def test_the_highest_level_holds(
    tmp_path: Path, gateway: str, version: str | None, policy: str, disk: str
) -> None:
    """Of gateway, version and request: the event says which was asked, the reply which was reached.

    Answers and failed runs alike. Where the disk is late `degrade` answers and says `spool`; `fail` answers 503 with
    the id of the record, and the log takes the answer back.
    """

    async def main() -> None:
        fails = policy != "degrade"
        audit = AuditSettings(level=version, on_unavailable="fail" if policy == "version fails" else None)  # type: ignore[arg-type]
        path = Path_(
            tmp_path,
            f"audit.level={gateway}",
            f"audit.on_unavailable={'fail' if policy == 'fail' else 'degrade'}",
            f"audit.sync_timeout_ms={2 if disk == 'late' else 5000}",
            session=session(audit=audit),
        )
        least = "spool" if policy == "version fails" else "none"
        for asked in ASKED:
            level = highest(gateway, version, asked, least)
            head = {} if asked is None else {"audit_level": asked}
            sinks = [path.send([n, 2, 3, 4], **head) for n in (1, 666)]
            events = await replied(path, sinks, disk)
            logged = {event.id: event for event in events}
            late = disk == "late" and level == "fsync"
            for sink, status in zip(sinks, (200, 500), strict=True):
                event = logged.pop(sink.fields["x-prediction-id"])
                assert (event.audit, event.status) == (level, status)
                reached = "fsync" if level == "fsync" and disk == "in time" else "spool"
                assert sink.fields["x-tidegate-audit"] == reached
                if late and fails:
                    assert (sink.status, sink.body["code"]) == (503, "audit_timeout")
                    (corrected,) = [e for e in logged.values() if e.parameters == {"corrects": event.id}]
                    assert (corrected.kind, corrected.code, corrected.status) == (
                        "cancelled",
                        "audit_timeout",
                        503,
                    )
                    assert corrected.done_ns >= event.done_ns
                    del logged[corrected.id]
                else:
                    assert sink.status == status
            assert logged == {}
        path.close()

    asyncio.run(main())


@pytest.mark.parametrize("gateway", LEVELS)
@pytest.mark.parametrize("version", ASKED)
def test_refusals_say_what_was_asked_and_that_nothing_was_waited_for(
    tmp_path: Path, gateway: str, version: str | None
) -> None:
    """A refused request has its level in the event, as far as it came; its reply left before the record: `none`."""

    async def main() -> None:
        path = Path_(tmp_path, f"audit.level={gateway}", session=session(audit=AuditSettings(level=version)))  # type: ignore[arg-type]
        for asked in ASKED:
            head = {} if asked is None else {"audit_level": asked}
            bad, unknown, large = Sink(), Sink(), Sink()
            path.send_body(b"{}", bad, **head)
            path.send_body(b"{}", unknown, **head, model="nobody")
            path.core.refuse(path.head(**head), InvalidRequest("by a door"), large, time.perf_counter_ns())
            path.core.turn()
            for event in path.predictions():
                assert (event.kind, event.audit) == ("refused", highest(gateway, asked))
            for sink, status in ((bad, 400), (unknown, 404), (large, 400)):
                assert (sink.status, sink.fields["x-tidegate-audit"]) == (status, "none")
                assert "x-prediction-id" not in sink.fields
        path.close()

    asyncio.run(main())


def test_who_is_refused_after_the_draw_had_its_versions_level(tmp_path: Path) -> None:
    """Drawn, and then not taken for want of time: the version's level counts, too."""

    async def main() -> None:
        path = Path_(tmp_path, session=session(audit=AuditSettings(level="fsync")))
        (version,) = path.models.entries["sum"].versions.values()
        version.hung = 99
        version.free_rows = -1
        sink = path.send([1, 2, 3, 4])
        path.core.turn()
        (event,) = path.predictions()
        assert (sink.status, event.code, event.audit) == (503, "model_not_ready", "fsync")
        path.close()

    asyncio.run(main())


def test_who_never_ran_is_told_so(tmp_path: Path) -> None:
    """Its deadline passed in the queue: the event has the level asked, the reply left before it."""

    async def main() -> None:
        path = Path_(tmp_path, session=session(audit=AuditSettings(level="fsync")))
        sink = path.send([1, 2, 3, 4])
        (version,) = path.models.entries["sum"].versions.values()
        (waiting,) = version.queue._by_key.values()
        waiting[0].deadline_ns = 1
        await until(lambda: sink.status)
        path.core.turn()
        (event,) = path.predictions()
        assert (sink.status, event.kind, event.audit) == (503, "failed", "fsync")
        assert sink.fields["x-tidegate-audit"] == "none"
        path.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({}, 200),
        ({"tier": "high"}, 503),
        ({"audit": AuditSettings(on_unavailable="fail")}, 503),
        ({"tier": "high", "audit": AuditSettings(on_unavailable="degrade")}, 200),
    ],
)
def test_a_version_of_high_tier_answers_nothing_unlogged(
    tmp_path: Path, settings: dict[str, Any], status: int
) -> None:
    """While the recorder cannot write it is refused before it runs; bundle.toml may say otherwise."""

    async def main() -> None:
        path = Path_(tmp_path, session=session(**settings))
        path.ring.set_unavailable(True)
        sink = path.send([1, 2, 3, 4])
        await until(lambda: sink.status)
        assert sink.status == status
        if status == 503:
            assert sink.body["code"] == "audit_unavailable"
            assert not path.session.runs
        path.close()

    asyncio.run(main())


def test_a_full_ring_holds_the_answers_of_such_a_version_alone(tmp_path: Path) -> None:
    """Without room its answers become 503 after the timeout, where others would be told by a gap."""

    async def main() -> None:
        path = Path_(tmp_path, "audit.append_timeout_ms=5", session=session(tier="high"), ring_bytes=65536)
        sinks = [path.send([1, 2, 3, 4]) for _ in range(400)]
        await until(lambda: all(sink.status for sink in sinks))
        statuses = {sink.status for sink in sinks}
        assert 503 in statuses
        assert all(
            sink.body["code"] in {"audit_unavailable", "audit_timeout"}
            for sink in sinks
            if sink.status == 503
        )
        assert path.ring.pending_gap is None
        path.close()

    asyncio.run(main())
