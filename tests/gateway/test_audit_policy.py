"""A version's own settings of the log: they raise what the gateway's say, and never lower it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from path import Path_, SumSession, until

from loaders.bundle import AuditSettings, BundleSettings


def session(**settings: Any) -> SumSession:
    """A version with these settings."""
    made = SumSession()
    made.bundle.settings = BundleSettings(**settings)
    return made


@pytest.mark.parametrize(
    ("gateway", "version", "asked", "waits_for"),
    [
        ("spool", None, None, "spool"),
        ("spool", "fsync", None, "fsync"),
        ("spool", "none", None, "spool"),
        ("none", "spool", None, "spool"),
        ("spool", "spool", "fsync", "fsync"),
        ("fsync", "none", "none", "fsync"),
    ],
)
def test_the_highest_level_holds(
    tmp_path: Path, gateway: str, version: str | None, asked: str | None, waits_for: str
) -> None:
    """Of gateway, version and request: the event says which."""

    async def main() -> None:
        settings = AuditSettings(level=version)  # type: ignore[arg-type]
        path = Path_(tmp_path, f"audit.level={gateway}", session=session(audit=settings))
        head = {} if asked is None else {"audit_level": asked}
        sink = path.send([1, 2, 3, 4], **head)
        await asyncio.sleep(0.01)
        (event,) = path.predictions()
        await until(lambda: sink.status)
        assert event.audit == waits_for
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
