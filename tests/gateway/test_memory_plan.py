"""The memory plan at start: with one more worker for the time of a rolling restart, or said that there is no room."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import config
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
