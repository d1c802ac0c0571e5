"""What tests of the forwarder before brokers that fail share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.flow import Flow


@pytest.fixture
def flow(tmp_path: Path) -> Iterator[Callable[..., Flow]]:
    """A new one before a broker or a cluster."""
    made: list[Flow] = []

    def make(bootstrap: str, **settings: Any) -> Flow:
        made.append(Flow(tmp_path / f"state{len(made)}", bootstrap, **settings))
        return made[-1]

    yield make
    for each in made:
        each.one.close()
