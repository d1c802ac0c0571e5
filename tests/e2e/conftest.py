"""A gateway of real processes, as an operator starts it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.serving import Gateway

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
READY_WITHIN_S = 30


@pytest.fixture
def gateway_process(tmp_path: Path) -> Iterator[Gateway]:
    """`tidegate serve` over a copy of the example models; SIGTERM must end it with exit 0."""
    if not any(EXAMPLES.glob("*/*/model.onnx")):
        pytest.skip("examples/models holds no models")
    repository = tmp_path / "models"
    shutil.copytree(EXAMPLES, repository)
    gateway = Gateway(repository, tmp_path / "state")
    try:
        gateway.start(READY_WITHIN_S)
        yield gateway
        code = gateway.stop()
        assert code == 0, f"exit {code} after SIGTERM: {gateway.said()}"
    finally:
        gateway.kill9_all()
