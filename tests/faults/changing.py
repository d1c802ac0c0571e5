"""One life of control's engine in a process of its own, so that it can be killed at any call: one change, then the end.

    python -P -m tests.faults.changing STATE_DIR KIND

Says `ready` before the change and `acknowledged REVISION` after it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from gateway.audit.source import claim_source
from gateway.audit.writer import Writer
from gateway.control.changes import promoted, rolled_back_canary, set_frozen, shifted, stopped
from gateway.control.engine import Engine
from gateway.control.outcome import changed_by
from gateway.control.recovery import recover
from gateway.fleet import Fleet

GATEWAY_ID = "00112233aabbccdd"
MODEL = "m"
RING_BYTES = 1024 * 1024
MAKERS = {
    "shift": lambda route, change: shifted(route, {"canary": 2_000}, change),
    "freeze": lambda route, change: set_frozen(route, True, change),
    "stop": stopped,
    "promote": lambda route, change: promoted(route, "canary", change),
    "rollback": lambda route, change: rolled_back_canary(route, "canary", change),
}


def say(text: str) -> None:
    """Whole, at once."""
    os.write(1, f"{text}\n".encode())


async def _live(state_dir: Path, kind: str) -> None:
    source = claim_source(state_dir, GATEWAY_ID, "control", state_dir / "ring", RING_BYTES)
    path = state_dir / "control" / "snapshot"
    state = recover(path, state_dir / "spool", GATEWAY_ID)
    writer = Writer(source, GATEWAY_ID)
    engine = Engine(state, writer, Fleet.open(state_dir / "ring" / "fleet"), path)
    await engine.place({MODEL: ("1", "2")})
    revision = engine.route(MODEL).revision
    say("ready")
    change = changed_by("test", "because")
    outcome = await engine.change_route(MODEL, kind, change, MAKERS[kind], expected_revision=revision)
    assert outcome.route is not None
    say(f"acknowledged {outcome.route.revision}")
    writer.close()


if __name__ == "__main__":
    asyncio.run(_live(Path(sys.argv[1]), sys.argv[2]))
