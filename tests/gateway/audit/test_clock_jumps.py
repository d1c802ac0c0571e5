"""A wall clock that jumps by an hour: what of the log depends on it, and how. See docs/consumers.md."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gateway import config
from gateway.audit import source as sources
from gateway.audit.event import Feedback
from gateway.audit.frame import Events, encoder, seal
from gateway.audit.retention import Retention
from gateway.audit.spool import epoch_path, segment_name, segments
from gateway.cli.tailing import last
from tests.gateway.audit.sim import Log, forget_owner, label, settle

HOUR_S = 3600
NOW_S = 1_700_000_000


@pytest.mark.parametrize("jump_s", [-HOUR_S, HOUR_S])
def test_epochs_only_grow(log: Log, monkeypatch: pytest.MonkeyPatch, jump_s: int):
    """An epoch is numbered by the second it begins in; where the clock is behind the last one, by one more."""
    now_s = float(NOW_S)
    monkeypatch.setattr(sources.time, "time", lambda: now_s)
    numbers = []
    for _ in range(2):
        writer = log.owner()
        numbers.append(writer.source.epoch)
        forget_owner(writer)
        now_s += jump_s
    assert numbers == [NOW_S, NOW_S + (jump_s if jump_s > 0 else 1)]


@pytest.mark.parametrize("jump_s", [-HOUR_S, HOUR_S])
def test_new_rings_are_found(log: Log, jump_s: int):
    """The ring directory was changed in an hour, or an hour ago, as the clock says now: what is new in it is seen."""
    recorder = log.recorder()
    settle(recorder)
    for value in range(2):
        writer = log.owner()
        writer.append_events([label(value)])
        at_ns = time.time_ns() + jump_s * 10**9
        os.utime(log.ring_dir, ns=(at_ns, at_ns))
        settle(recorder)
    assert sorted(log.labels()) == [0, 1]


@pytest.mark.parametrize(("jump_s", "left"), [(-HOUR_S, 3), (0, 2), (HOUR_S, 1)])
def test_age_is_by_the_clock_that_retention_sees(tmp_path: Path, jump_s: int, left: int):
    """Ahead by an hour: an hour's segments go early; back: they stay for as much longer. The newest always stays."""
    epoch = epoch_path(tmp_path / "spool", 1, 5)
    epoch.path.mkdir(parents=True)
    for index, age_s in enumerate((5.5 * HOUR_S, 4.5 * HOUR_S, 0)):
        path = epoch.path / segment_name(index)
        path.write_bytes(seal(index, 1, encoder.encode(Events([label(index)]))))
        os.utime(path, (NOW_S - age_s, NOW_S - age_s))
    (epoch.path / "synced").write_bytes((3).to_bytes(8, "little"))
    loaded, _ = config.load(None, [f"state_dir={tmp_path}", "audit.keep_h=5"], {})
    Retention(tmp_path / "spool", loaded).apply(NOW_S + jump_s)
    assert len(segments(epoch)) == left


def test_the_last_records_since_a_time(tmp_path: Path):
    """`tail --since` reads backwards: a segment that was written after the clock was set back does not hide those
    before it."""
    epoch = epoch_path(tmp_path, 1, 5)
    epoch.path.mkdir(parents=True)
    for index, at_s in enumerate((NOW_S, NOW_S - HOUR_S + 60)):
        event = label(index)
        event.at_ns = at_s * 10**9
        path = epoch.path / segment_name(index)
        path.write_bytes(seal(index, 1, encoder.encode(Events([event]))))
        os.utime(path, (at_s, at_s))
    (epoch.path / "synced").write_bytes((2).to_bytes(8, "little"))
    since_ns = (NOW_S - 60) * 10**9
    found, _ = last(
        tmp_path, 10, lambda event: isinstance(event, Feedback) and event.at_ns >= since_ns, since_ns
    )
    assert [event.labels[0]["value"] for event in found] == [0]
