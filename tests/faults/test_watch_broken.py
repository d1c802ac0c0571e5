"""What lies broken on the disk of sidecar and mirror: requests notice nothing, an operator reads one line, it heals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.serving import Gateway
from gateway.audit.event import Shadow
from tests.faults.watched import (
    MODEL,
    SETTINGS,
    Sender,
    assert_folds_again,
    assert_no_hole,
    assert_none_failed,
    await_quiet,
    events_of,
    half_year,
    load_all,
    pid_of,
    said_by,
    set_route,
    ticks_of,
    until,
    write_models,
)

OVER_S = 300.0
"""Flights to the end of the test, on a busy machine, too: where nothing flies a tick comes once a minute."""
GARBAGE = b"this is no database and no JSON \xff\x00" * 200


def _successor(gateway: Gateway, role: str, spoil: Callable[[], object]) -> int:
    """Stop a role, spoil what it left, kill it; the next one's pid, once it has made a tick or an answer."""
    pid = pid_of(gateway, role)
    os.kill(pid, signal.SIGSTOP)
    spoil()
    os.kill(pid, signal.SIGKILL)
    until("it is gone", lambda: gateway.pids(role) != [pid])
    successor = pid_of(gateway, role)
    ticks = len(ticks_of(gateway))
    until("two ticks more", lambda: len(ticks_of(gateway)) >= ticks + 2)
    assert gateway.pids(role) == [successor], "it did not stay"
    return successor


def _spoil(state: Path) -> None:
    """Garbage, and no journal: of a transaction cut short it would be played back into the garbage."""
    state.write_bytes(GARBAGE)
    state.with_name("state.db-journal").unlink(missing_ok=True)


def _complaints(gateway: Gateway, role: str, pid: int) -> list[tuple[str, Any]]:
    """What a process said that is more than news, decisions aside: event and reason."""
    return [
        (line["event"], line.get("why") or line.get("says"))
        for line in said_by(gateway, role, pid)
        if line["level"] != "info" and line["event"] not in {"lease", "decision", "rolled_back"}
    ]


def _mirrored(gateway: Gateway) -> int:
    return sum(isinstance(event, Shadow) for event in events_of(gateway))


def test_broken_files_of_the_watch_touch_no_request_and_heal(tmp_path: Path) -> None:
    """State of garbage and none at all, positions of another's making, bundles that cannot be read: each one line."""
    write_models(tmp_path / "models")
    with Gateway(tmp_path / "models", tmp_path / "state", workers=2, settings=SETTINGS) as gateway:
        state = gateway.state_dir / "sidecar" / "state.db"
        positions = gateway.state_dir / "mirror" / "positions.json"
        bundle = gateway.models / MODEL / "1" / "bundle.toml"
        sound = bundle.read_bytes()
        load_all(gateway)
        set_route(gateway, "2", 2_000)
        until("the mirror has begun", positions.exists)
        with Sender(gateway.data_url, half_year(), over_s=OVER_S) as sender:
            sender.await_answered(100)

            pid = _successor(gateway, "sidecar", lambda: _spoil(state))
            assert _complaints(gateway, "sidecar", pid) == [("state_unreadable", "file is not a database")]
            aside = list(state.parent.glob("state.db.broken-*"))
            assert [path.read_bytes() for path in aside] == [GARBAGE]

            pid = _successor(gateway, "sidecar", state.unlink)
            assert _complaints(gateway, "sidecar", pid) == []

            broken = gateway.models / MODEL / "9"
            broken.mkdir()
            (broken / "model.onnx").write_bytes(GARBAGE)
            (broken / "bundle.toml").write_bytes(GARBAGE)
            pid = _successor(gateway, "sidecar", lambda: bundle.write_bytes(GARBAGE))
            until("it says so", lambda: _complaints(gateway, "sidecar", pid))
            ((event, why),) = _complaints(gateway, "sidecar", pid)
            assert (event, f"{MODEL}/1/bundle.toml" in why) == ("bundle_not_read", True)

            bundle.write_bytes(sound)
            _successor(gateway, "sidecar", state.unlink)
            pid = _successor(gateway, "mirror", lambda: positions.write_bytes(b'{"feed": ["of", "another"]}'))
            until("it says so", lambda: _complaints(gateway, "mirror", pid))
            ((event, why),) = _complaints(gateway, "mirror", pid)
            assert (event, "feed" in why) == ("positions_unreadable", True)
            answered = _mirrored(gateway)
            until("the mirror goes on", lambda: _mirrored(gateway) > answered)
            counters = sender.stop()
        assert_none_failed(counters)
        await_quiet(gateway, 0)
        assert gateway.stop() == 0, gateway.said()
    assert_folds_again(gateway, tmp_path)
    assert_no_hole(gateway)
    assert "Traceback" not in gateway.log.read_text()
