"""What a load waits for, and what ours is started with under one. Nothing is started here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers import loads
from bench.peers.adapters.tidegate import _settings
from bench.peers.peer import Begin, Setting

OFF = "sidecar.enabled=false"


class Clock:
    """A tree that takes so much processor time between looks, and the time that passes at them."""

    def __init__(self, patch: pytest.MonkeyPatch, *spent_s: float) -> None:
        self.now_s, self.looks = 0.0, 0
        left: Iterator[float] = iter(spent_s)
        patch.setattr(loads.time, "sleep", self._sleep)
        patch.setattr(loads.time, "monotonic", lambda: self.now_s)
        patch.setattr(loads, "counted", lambda _pids: {})
        patch.setattr(loads, "spent_s", lambda _before, _now: next(left))

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.looks += 1


def test_a_log_that_is_behind_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the tree is idle: three looks at work, one at none."""
    clock = Clock(monkeypatch, 0.1, 0.09, 0.03, 0.01)
    loads.work_off(lambda: ())
    assert clock.looks == 4


def test_a_side_that_is_never_idle_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that always does something does not hold the run up."""
    clock = Clock(monkeypatch, *[0.1] * 1000)
    loads.work_off(lambda: ())
    assert clock.now_s == pytest.approx(loads.BACKLOG_S, abs=0.2)


@pytest.mark.parametrize(
    ("audit", "monitor", "expected"),
    [(True, True, set()), (True, False, {OFF}), (False, False, {OFF, "audit.level=none"})],
)
def test_under_load_ours_has_no_drift_monitor(
    tmp_path: Path, audit: bool, monitor: bool, expected: set[str]
) -> None:
    """What no other product has is compared with nothing; the log is on where theirs is."""
    what = Begin(
        repository=tmp_path, model="mlp", home=tmp_path, setting=Setting(), audit=audit, monitor=monitor
    )
    assert set(_settings(what)) & {OFF, "audit.level=none"} == expected
