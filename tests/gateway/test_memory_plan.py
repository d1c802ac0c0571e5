"""The memory plan at start: with one more worker for the time of a rolling restart, or said that there is no room."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import config
from gateway import memory as module
from gateway.control.snapshot import DesiredVersion, Ledger, Serving, encode
from gateway.memory import memory_plan, sum_at_start


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with a model of a megabyte."""
    path = tmp_path / "models" / "one" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(1 << 20))
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("share", "fits", "one_more"), [(0.9, False, False), (1.1, True, False), (2.1, True, True)]
)
def test_one_more_worker_is_planned_for(
    models: Path, tmp_path: Path, share: float, fits: bool, one_more: bool
) -> None:
    """A start needs room for the workers alone; without room for one more, restarts go another way, and it is said."""
    plain = config.load(overrides=["workers=1"], environ={})[0]
    needs = memory_plan(plain).total(1 << 20)
    limit = int(needs * share / 0.8)
    settings = config.load(overrides=["workers=1", f"session.memory_max_bytes={limit}"], environ={})[0]
    found = sum_at_start(settings, models, tmp_path / "state")
    assert (found.fits, found.one_more) == (fits, one_more)
    assert ("no room for one more worker" in found.says) == (fits and not one_more)


def test_one_more_worker_has_a_ring_too() -> None:
    """What the larger plan adds is a whole worker."""
    settings = config.load(overrides=["workers=2"], environ={})[0]
    two, three = memory_plan(settings), memory_plan(settings, more=1)
    assert (two.workers, three.workers) == (2, 3)
    assert three.rings_bytes - two.rings_bytes == settings.audit.ring_bytes
    assert three.limit_bytes == two.limit_bytes


def test_versions_of_the_last_snapshot_count_with_the_newest_on_disk(models: Path, tmp_path: Path) -> None:
    """Both are loaded at the start: 1 MiB of the newest, 2 MiB of the one that has traffic still; an older one without
    either is not counted."""
    for version, size in (("7", 2 << 20), ("8", 4 << 20), ("9", 1 << 20)):
        path = models / "two" / version / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size))
    settings = config.load(overrides=["workers=1"], environ={})[0]
    state_dir = tmp_path / "state"
    assert "2 versions 2.1 MB" in sum_at_start(settings, models, state_dir).says
    wanted = (
        DesiredVersion(model="two", version="7", slot=0),
        DesiredVersion(model="two", version="9", slot=1),
    )
    (state_dir / "control").mkdir(parents=True)
    serving = Serving(gateway_id="00" * 8, generation=1, versions=wanted)
    (state_dir / "control" / "snapshot").write_bytes(encode(serving, Ledger()))
    assert "3 versions 4.2 MB" in sum_at_start(settings, models, state_dir).says
    (state_dir / "control" / "snapshot").write_bytes(b"torn")
    assert "2 versions 2.1 MB" in sum_at_start(settings, models, state_dir).says
    assert "0 versions " in sum_at_start(settings, tmp_path / "nowhere", state_dir).says


def test_the_machine_is_the_limit_where_none_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set goes before it."""
    monkeypatch.setattr(module, "limit_bytes", lambda: 7_000_000)
    plain = config.load(overrides=["workers=1"], environ={})[0]
    assert memory_plan(plain).limit_bytes == 7_000_000
    bounded = config.load(overrides=["session.memory_max_bytes=900000000"], environ={})[0]
    assert memory_plan(bounded).limit_bytes == 900_000_000
