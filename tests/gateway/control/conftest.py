"""A control plane a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.control.plane import Plane


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    """Two workers, nothing loaded."""
    return Plane(tmp_path / "state")
