"""A gateway of real processes, as an operator starts it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.serving import Gateway
from tests.e2e.onnx_models import write_linear, write_turns, write_two_outputs

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
READY_WITHIN_S = 60


@pytest.fixture
def gateway_process(tmp_path: Path) -> Iterator[Gateway]:
    """`tidegate serve` over a copy of the example models; SIGTERM must end it with exit 0."""
    with _serving_examples(tmp_path) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The same, for all tests of a module that only ask it."""
    with _serving_examples(tmp_path_factory.mktemp("examples")) as gateway:
        yield gateway


@contextmanager
def _serving_examples(directory: Path) -> Iterator[Gateway]:
    if not any(EXAMPLES.glob("*/*/model.onnx")):
        pytest.skip("examples/models holds no models")
    repository = directory / "models"
    shutil.copytree(EXAMPLES, repository)
    gateway = Gateway(repository, directory / "state")
    try:
        gateway.start(READY_WITHIN_S)
        yield gateway
        code = gateway.stop()
        assert code == 0, f"exit {code} after SIGTERM: {gateway.said()}"
    finally:
        gateway.kill9_all()


@pytest.fixture(scope="module")
def both_doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gateway]]:
    """Two gateways over one repository, one for each door, one worker with short timeouts; for tests that ask them."""
    base = tmp_path_factory.mktemp("doors")
    write_linear(base / "models")
    write_two_outputs(base / "models")
    timeouts = ("data.header_timeout_s=1", "data.body_timeout_s=1", "data.write_timeout_s=1")
    made = {
        door: Gateway(base / "models", base / door, settings=(f"data.door={door}", *timeouts))
        for door in ("fast", "starlette")
    }
    try:
        for gateway in made.values():
            gateway.start()
        yield made
        assert [gateway.stop() for gateway in made.values()] == [0, 0]
    finally:
        for gateway in made.values():
            gateway.kill9_all()


@pytest.fixture(scope="module", params=["fast", "starlette"])
def strict(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One worker with short timeouts and room for eight connections, behind either door."""
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
