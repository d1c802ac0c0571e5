"""A rolling restart without memory for one more worker, and how much room there is."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway import rolling as module
from gateway.rolling import SUCCESSOR_S, room_bytes
from tests.gateway.played import Stage, signals
from tests.gateway.played import roomy as roomy  # a fixture


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("why", ["plan", "host"])
def test_without_memory_for_one_more_a_worker_leaves_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """It is told, its next life is waited for, and the log says so."""
    caplog.set_level(logging.INFO)
    stage = Stage(tmp_path / "fleet", 2, one_more=why != "plan")
    if why == "host":
        stage.fleet.worker(1)[words_of.RSS_BYTES] = 1000
        monkeypatch.setattr(module, "room_bytes", lambda: 999)
    stage.rolling.ask(stage.children)
    for child in list(stage.children):
        stage.advance()
        assert signals(child) == [signal.SIGTERM]
        assert child.ending_s is not None
        stage.advance(10)
        stage.die(child)
        stage.advance(10)
        stage.start(child)
        stage.advance(10)
        assert stage.rolling.runs
        stage.serve(child)
        stage.advance()
    assert stage.rolling.state == "done"
    assert stage.names() == ["worker-0", "worker-1"]
    said = [r.message for r in caplog.records]
    assert said.count("worker_leaves_before_its_successor_comes") == 2


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("comes", [True, False], ids=["serves not", "starts not"])
def test_a_worker_that_left_first_and_does_not_come_back_is_given_up(tmp_path: Path, comes: bool) -> None:
    """After 300 s: the other one serves on, and it is said of whom, and what it did not do."""
    stage = Stage(tmp_path / "fleet", 2, one_more=False)
    first, second = stage.children
    stage.rolling.ask(stage.children)
    stage.advance()
    stage.die(first)
    if comes:
        stage.start(first)
    stage.advance(SUCCESSOR_S - 1)
    assert stage.rolling.runs
    stage.advance(2)
    assert stage.rolling.state == "failed"
    said = "it did not serve within 300 s" if comes else "it does not start again"
    assert stage.rolling.why == f"worker-0: {said}"
    assert signals(second) == []


@pytest.mark.parametrize(
    ("meminfo", "cgroup", "room"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    1000 kB\n", {}, 1_024_000),
        ("MemAvailable: 1000 kB\n", {"max": "500000", "current": "300000", "stat": "inactive_file 50000"}, 250_000),
        ("MemAvailable: 100 kB\n", {"max": "500000", "current": "300000", "stat": "anon 7"}, 102_400),
        ("MemAvailable: 1000 kB\n", {"max": "max", "current": "300000", "stat": ""}, 1_024_000),
        ("no words", {"max": "500000", "current": "300000", "stat": ""}, 200_000),
        ("", {}, 1 << 62),
    ],
)  # fmt: skip
def test_room_is_the_least_of_host_and_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meminfo: str, cgroup: dict[str, str], room: int
) -> None:
    """What the kernel could take back from files counts as free; who has no limit, or tells nothing, sets none."""
    (tmp_path / "meminfo").write_text(meminfo)
    for name, text in cgroup.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(module, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    assert room_bytes() == room
