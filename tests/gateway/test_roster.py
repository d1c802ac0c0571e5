"""status.json of the supervisor: what stands there, when it is written, and a disk that takes nothing."""

from __future__ import annotations

import json
from pathlib import Path

from gateway import roster as module
from gateway.children import Child, Proc
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
