"""status.json of the supervisor: what stands there, when it is written, and a disk that takes nothing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway import roster as module
from gateway.api.metrics import FleetCollector
from gateway.children import Child, Proc
from gateway.control.snapshot import Serving
from gateway.fleet import Fleet
from gateway.roster import Roster


def child(name: str, *, pid: int | None = 5) -> Child:
    """A control process that runs, or not."""
    made = Child(role=name, argv=[], lives=2, started_s=90.0)
    made.process = Proc(pid) if pid is not None else None
    return made


def test_what_stands_there(tmp_path: Path) -> None:
    """Each process, deaths by role and cause, and what else the supervisor tells; 0600."""
    roster = Roster(tmp_path)
    control, recorder = child("control"), child("recorder", pid=None)
    roster.died(recorder, "signal", -9, 99.0)
    roster.died(recorder, "exit", 1, 99.5)
    roster.write([control, recorder], {"restart": {"state": "none"}}, 100.0)
    path = tmp_path / "supervisor" / "status.json"
    assert path.stat().st_mode & 0o777 == 0o600
    found = module.read(tmp_path)
    assert found is not None
    assert [(c["name"], c["pid"], c["up_s"], c["last_exit"]) for c in found["children"]] == [
        ("control", 5, 10.0, None),
        ("recorder", None, None, 1),
    ]
    assert found["deaths"] == {"recorder": {"exit": 1, "signal": 1, "stall": 0, "refused": 0}}
    assert found["restart"] == {"state": "none"}


def test_counts_of_the_image_before_go_on(tmp_path: Path) -> None:
    """An upgrade is no new start."""
    roster = Roster(tmp_path, {"worker": {"exit": 3, "signal": 0, "stall": 0, "refused": 0}})
    roster.died(child("worker"), "exit", 1, 1.0)
    assert roster.counts["worker"]["exit"] == 4


def test_once_a_second_and_at_each_change(tmp_path: Path) -> None:
    """No more than that: it is written for as long as the gateway lives."""
    roster, path = Roster(tmp_path), tmp_path / "supervisor" / "status.json"
    written = []
    for now_s, state in ((1.0, "a"), (1.5, "a"), (1.6, "b"), (1.7, "b"), (2.7, "b"), (2.8, "b")):
        roster.write([child("control")], {"state": state}, now_s)
        written.append(path.exists())
        path.unlink(missing_ok=True)
    assert written == [True, False, True, False, True, False]


def test_a_disk_that_takes_nothing_costs_the_file_alone(tmp_path: Path) -> None:
    """The supervisor goes on; who reads finds nothing, or the old one."""
    (tmp_path / "supervisor").write_text("a file where a directory should be")
    Roster(tmp_path).write([], {}, 1.0)
    assert module.read(tmp_path) is None


def test_nonsense_is_nothing(tmp_path: Path) -> None:
    """A torn or foreign file."""
    (tmp_path / "supervisor").mkdir()
    for text in ("", "{", "[]", '{"a": 1}', "\x00"):
        (tmp_path / "supervisor" / "status.json").write_text(text)
        assert module.read(tmp_path) is None
    module.replace_file(tmp_path / "supervisor" / "status.json", {"children": []})
    assert module.read(tmp_path) == {"children": []}
    assert json.loads((tmp_path / "supervisor" / "status.json").read_text()) == {"children": []}


def test_metrics_count_deaths_by_role_and_cause(tmp_path: Path) -> None:
    """And say how many die again and again, what was given up, and how old it is: one that stands still grows old."""
    roster, dying = Roster(tmp_path), child("forwarder")
    for second in range(5):
        roster.died(dying, "exit", 1, float(second))
    roster.died(child("worker"), "stall", -9, 5.0)
    more = {"restart": {"state": "failed"}, "upgrade": {"state": "done"}}
    roster.write([dying], more, 5.0)
    serving = Serving(gateway_id="00" * 8, generation=1)
    collector = FleetCollector(
        Fleet.create(tmp_path / "fleet", 1), serving, tmp_path, time.time_ns() + 7 * 10**9
    )
    found = {(s.name, *s.labels.values()): s.value for family in collector.collect() for s in family.samples}
    assert found["tidegate_process_restarts_total", "forwarder", "exit"] == 5
    assert found["tidegate_process_restarts_total", "worker", "stall"] == 1
    assert found["tidegate_process_restarts_total", "worker", "exit"] == 0
    assert found[("tidegate_processes_crash_looping",)] == 1
    assert found["tidegate_replacement_failed", "restart"] == 1
    assert found["tidegate_replacement_failed", "upgrade"] == 0
    assert 7 <= found[("tidegate_supervisor_age_seconds",)] < 60


def test_a_spare_place_is_no_worker(tmp_path: Path) -> None:
    """Configured are two; the third has a series from when a worker was there, and keeps it, as counters must."""
    fleet = Fleet.create(tmp_path / "fleet", 2, 1)
    serving = Serving(gateway_id="00" * 8, generation=1)

    def series() -> tuple[float, list[str]]:
        families = {f.name: f for f in FleetCollector(fleet, serving, tmp_path, 1).collect()}
        turns = families["tidegate_worker_turns"].samples
        return families["tidegate_workers"].samples[0].value, [s.labels["worker"] for s in turns]

    assert series() == (2, ["0", "1"])
    assert [w["worker"] for w in fleet.facts()] == [0, 1]
    fleet.worker(0)[words_of.PID] = 6
    fleet.worker(2)[words_of.PID] = 7
    fleet.worker(2)[words_of.STATE] = words_of.SERVING
    fleet.set_spare(2, spare=False)
    fleet.set_spare(0, spare=True)
    assert series() == (2, ["0", "1", "2"])
    assert [w["worker"] for w in fleet.facts()] == [1, 2]


@pytest.mark.parametrize("kind", ["symlink_to", "hardlink_to"])
def test_what_another_put_in_the_way_is_not_written_through(tmp_path: Path, kind: str) -> None:
    """Root writes here, too, in a directory of the gateway's user (`tidegate upgrade`): no link leads elsewhere."""
    other = tmp_path / "other"
    other.write_text("theirs")
    before = other.stat()
    getattr(tmp_path / "request.json.new", kind)(other)
    owner = (os.geteuid(), os.getegid()) if os.geteuid() else (12345, 12346)
    module.replace_file(tmp_path / "request.json", {"id": "a"}, owner=owner)
    after = other.stat()
    assert other.read_text() == "theirs"
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    made = (tmp_path / "request.json").lstat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o7777) == (*owner, 0o600)
