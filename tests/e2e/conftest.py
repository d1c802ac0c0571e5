"""A gateway of real processes, as an operator starts it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.serving import Gateway
from tests.e2e.onnx_models import write_linear, write_turns

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


@pytest.fixture(scope="session", params=["fast", "starlette"])
def strict(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One worker with short timeouts and room for eight connections, behind either door; shared, since starts cost."""
    directory: Path = tmp_path_factory.mktemp("strict")
    write_linear(directory / "models")
    write_turns(directory / "models")
    settings = (
        f"data.door={request.param}",
        "data.header_timeout_s=1",
        "data.body_timeout_s=1",
        "data.write_timeout_s=1",
        "data.connections_max=8",
    )
    made = Gateway(directory / "models", directory / "state", settings=settings).start()
    yield made
    assert made.stop() == 0, made.said()
