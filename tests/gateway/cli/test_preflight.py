"""An upgrade's check in this process: what it takes over, what it refuses, and that it leaves things as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import gateway
from gateway.claims import make_memory, prepare_state
from gateway.cli.failures import Stop
from gateway.cli.preflight import KEPT, check
from gateway.cli.serve import Asked, code_path, prepare
from gateway.process import CONTEXT_VARIABLE

Running = dict[str, Any]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    """The context of a gateway that runs in tmp_path, of which only the state is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    context, _ = prepare(Asked(flags={"data.port": 0, "admin.port": 0}, state_dir="state"))
    gateway_id, lock = prepare_state(context.state_path)
    os.close(lock)
    _, fleet_path = make_memory(tmp_path / "ring", 1)
    held = context.with_(
        gateway_id=gateway_id,
        ring_dir=str(fleet_path.parent),
        fleet_path=str(fleet_path),
        data_fd=11,
        admin_fd=12,
        data_url="http://127.0.0.1:1",
        supervisor_pid=77,
        version="0.0.1",
    )
    return asdict(held)


def files(path: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_what_the_gateway_holds_is_taken_over(running: Running, tmp_path: Path) -> None:
    """Descriptors, addresses and shared memory of the running one, the rest anew; nothing on disk changes."""
    before = files(tmp_path)
    context = check({**running, "of_another_version": 1})
    assert {name: getattr(context, name) for name in KEPT} == {name: running[name] for name in KEPT}
    assert (context.version, context.code_path) == (gateway.__version__, code_path())
    assert context.asked == running["asked"]
    assert files(tmp_path) == before


def test_a_changed_configuration_is_taken_up(running: Running, tmp_path: Path) -> None:
    """From the file that stands there now."""
    (tmp_path / "tidegate.toml").write_text("[data]\nkeep_alive_s = 33\n")
    assert json.loads(check(running).config)["data"]["keep_alive_s"] == 33


def _newer(state: Path) -> None:
    (state / "format").write_text("2\n")


def _other_fleet(state: Path) -> None:
    fleet = state.parent / "ring" / "fleet"
    fleet.write_bytes(b"TGFLEET1" + fleet.read_bytes()[8:])


def _other_ring(state: Path) -> None:
    (state.parent / "ring" / "00-01").write_bytes(b"TGRING\0\x09" * 1000)


def _bad_key(state: Path) -> None:
    (state / "redaction.key").write_text("short")


def _spoilt_snapshot(state: Path) -> None:
    (state / "control").mkdir()
    (state / "control" / "snapshot").write_text("x\ny\nz\n")


def _workers(state: Path) -> None:
    (state.parent / "tidegate.toml").write_text("workers = 3\n")


def _wrong_setting(state: Path) -> None:
    (state.parent / "tidegate.toml").write_text('[audit]\nlevel = "loud"\n')


def _no_models(state: Path) -> None:
    (state.parent / "models").rmdir()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_newer, "state directory has format 2"),
        (_other_fleet, "shared memory of the running gateway has another format"),
        (_other_ring, "rings have another format"),
        (_bad_key, "redaction.key in the state directory is not 64 hex digits"),
        (_spoilt_snapshot, "snapshot"),
        (_workers, "workers is 3 now and was 1"),
        (_wrong_setting, "audit.level"),
        (_no_models, "model repository"),
    ],
)
def test_what_stands_in_the_way_is_named(
    running: Running, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    """One line, as the supervisor gets it from the process; exit 1."""
    spoil(tmp_path / "state")
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli.preflight"],
        env={
            **os.environ,
            CONTEXT_VARIABLE: json.dumps(running),
            "PYTHONPATH": str(Path(gateway.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    why = json.loads(done.stdout)["why"]
    assert why.startswith(f"version {gateway.__version__}: ")
    assert told in why


def test_another_state_directory_is_refused(running: Running) -> None:
    """The state of one gateway is not another's."""
    with pytest.raises(Stop, match="the state directory would be"):
        check({**running, "state_dir": "/elsewhere"})


def test_keys_that_the_running_version_had_not_are_made(running: Running, tmp_path: Path) -> None:
    """By this process, which may fail; the new image must not."""
    (tmp_path / "state" / "redaction.key").unlink()
    check(running)
    assert len((tmp_path / "state" / "redaction.key").read_text().strip()) == 64
