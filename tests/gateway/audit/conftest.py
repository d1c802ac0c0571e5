"""A log of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.audit.sim import Log


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """An empty state directory; real processes are ended with the test."""
    made = Log(tmp_path / "state")
    yield made
    made.end_children()
