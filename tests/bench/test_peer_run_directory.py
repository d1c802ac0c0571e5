"""A run's directory is of one run: of one process at a time, and a new one of nobody before."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.peers import run as runs
from bench.peers.keeping import held
from bench.peers.run import Wanted
from gateway.errors import ConfigInvalid

_HOLDS = """
import sys
from pathlib import Path
from bench.peers.keeping import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_that_another_process_is_at_is_refused_by_name_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id is said, for `run` and `calibrate` alike; killed with -9 it holds nothing any more."""
    monkeypatch.setattr(runs, "demand", lambda _: None)
    environ = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environ,
    ) as other:  # fmt: skip
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            for ask in (runs.run, runs.calibrate):
                with pytest.raises(ConfigInvalid, match=f"process {other.pid} is at it"):
                    ask(Wanted(), tmp_path, lambda _: None)
        finally:
            other.kill()
    with (
        held(tmp_path),
        pytest.raises(ConfigInvalid, match=f"process {os.getpid()} is at it"),
        held(tmp_path),
    ):
        pass
    with held(tmp_path):
        pass


def test_two_runs_of_one_second_have_a_directory_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither finds what the other kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 11, 28, 12, tzinfo=UTC)

    monkeypatch.setattr(runs, "datetime", Stopped)
    places = [runs.new_directory() for _ in range(3)]
    assert [place.name for place in places] == [
        "20261128-120000", "20261128-120000-2", "20261128-120000-3",
    ]  # fmt: skip
    assert all(place.is_dir() for place in places)
