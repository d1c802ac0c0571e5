"""How full spool and disk are: thresholds, rates, what waits in rings, and the file that says it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from gateway import config
from gateway.audit.standing import Alarms, Levels, Rate, Unsynced, hours_left, read_status, write_status
from gateway.audit.upkeep import Upkeep
from gateway.cli.standing import in_words
from tests.gateway.audit.sim import Log, label, settle


def test_each_threshold_is_told_once_until_it_was_left_well_behind():
    """Swinging around one says nothing new; several at once are the highest."""
    levels = Levels((0.5, 0.8, 0.95), 0.05)
    said = [
        levels.crossed(fill)
        for fill in (0.2, 0.5, 0.49, 0.51, 0.46, 0.6, 0.44, 0.5, 0.96, 0.91, 0.96, 0.89, 1.0)
    ]
    assert said == [None, 0.5, None, None, None, None, None, 0.5, 0.95, None, None, None, 0.95]


def test_the_rate_is_of_the_last_minutes():
    """Until a minute was seen the files' word holds; a burst is forgotten after five."""
    rate = Rate(before_per_h=7.0, now_s=0.0)
    rate.wrote(6_000)
    assert rate.per_h(59.0) == 7.0
    for second in range(60, 300, 10):
        rate.wrote(1_000)
        assert rate.per_h(float(second)) > 0
    for second in range(300, 700, 10):
        rate.per_h(float(second))
    assert rate.per_h(700.0) == 0.0
    assert hours_left(0, 100, rate.per_h(701.0)) is None
    assert hours_left(40, 100, 30.0) == 2.0


class Marks:
    """A ring's two words."""

    def __init__(self) -> None:
        self.committed = self.synced = 0


def test_what_power_loss_costs_is_the_most_that_waited():
    """Bytes of all rings, and how long one's mark stood still with something behind it."""
    unsynced, one, other = Unsynced(), Marks(), Marks()
    rings = [("a", one), ("b", other)]
    one.committed = 100
    unsynced.note(rings, 1_000_000)
    other.committed = 50
    unsynced.note(rings, 6_000_000)
    one.synced = 100
    unsynced.note(rings, 9_000_000)
    assert unsynced.take() == (150, 5.0)
    other.synced = 50
    unsynced.note(rings, 11_000_000)
    assert unsynced.take() == (0, 0.0)


def figures(**changes: Any) -> dict[str, Any]:
    """A status with room."""
    fill = {"fill": 0.1, "held_bytes": 10, "spool_bytes": 10, "max_bytes": 100, "hours_left": 3.0}
    return {**fill, "bytes_per_h": 30, "free_bytes": 1000, **changes}


@pytest.mark.parametrize("forwarded", [True, False])
def test_a_filling_spool_is_told_with_what_to_do(caplog, forwarded: bool):
    """Bytes, hours left, and what helps: a warning where records will wait, no more than a word where the oldest go."""
    caplog.set_level(logging.INFO)
    alarms = Alarms(forwarded=forwarded, reserve_bytes=10)
    for fill in (0.4, 0.81, 0.82):
        alarms.look(figures(fill=fill, held_bytes=80))
    (line,) = caplog.records
    assert (line.msg, line.percent, line.hours_left, line.max_bytes) == ("spool_filling", 80, 3.0, 100)
    assert line.levelno == (logging.WARNING if forwarded else logging.INFO)
    assert "audit.max_bytes" in line.do


def test_a_filling_disk_is_told_by_the_reserve(caplog):
    """At 8, 4 and 2 times the reserve, once each."""
    alarms = Alarms(forwarded=True, reserve_bytes=10)
    for free in (81, 80, 79, 41, 40, 21, 19, 25, 19):
        alarms.look(figures(free_bytes=free))
    assert [(line.msg, line.free_bytes) for line in caplog.records] == [
        ("disk_filling", 80),
        ("disk_filling", 40),
        ("disk_filling", 19),
    ]


def test_the_status_is_written_where_no_new_file_can_be(tmp_path: Path, monkeypatch):
    """On a full disk the old file is overwritten in its place, and is whole."""
    assert write_status(tmp_path / "recorder", figures(spool_bytes=1))

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    assert write_status(tmp_path / "recorder", figures(spool_bytes=2))
    assert read_status(tmp_path)["spool_bytes"] == 2
    monkeypatch.setattr("os.pwrite", refuse)
    assert not write_status(tmp_path / "recorder", figures())


def test_the_recorder_says_how_it_does(log: Log):
    """What stands in its status is what the spool takes and what waits, and the command says it in words."""
    loaded, _ = config.load(None, [f"state_dir={log.state_dir}"], {})
    keeping = Upkeep(log.spool, loaded)
    recorder, writer = log.recorder(), log.owner()
    writer.append_events([label(1, 5000)])
    keeping.after_pass(recorder, recorder.step())
    settle(recorder)
    status = json.loads((log.state_dir / "recorder" / "status.json").read_bytes())
    assert status["spool_bytes"] > 5000
    assert (status["failing"], status["waiting"], status["gaps"]) == (0, 0, 0)
    assert status["reserve_bytes"] == (log.state_dir / "reserve").stat().st_size
    assert status["max_bytes"] == keeping.retention.max_bytes
    said = in_words(status, status["at_ns"] / 1e9)
    assert len(said) == 3
    assert "in reserve" in said[1]
    wrong = {**status, "failing": 1, "failing_s": 3.0, "failing_why": "Input/output error"}
    assert "RECORDS CANNOT BE WRITTEN since 3 s: Input/output error" in in_words(wrong)
    assert "the recorder does not run" in in_words(status, status["at_ns"] / 1e9 + 60)[-1]
    os.unlink(log.state_dir / "recorder" / "status.json")
    assert in_words(read_status(log.state_dir)) == []
