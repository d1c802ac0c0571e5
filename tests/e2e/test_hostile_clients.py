"""Nothing that a client sends can hurt the gateway: exchanges drawn from a seed, and the good clients beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from bench.serving import Gateway
from tests.e2e.hostile_clients import Beside, Told, play
from tests.e2e.hostile_exchanges import exchanges, one_of_each
from tests.e2e.hostile_matrix import GOES_ON, MATRIX
from tests.e2e.onnx_models import write_linear
from tests.e2e.wire import Wire, infer

SEED = int(os.environ.get("HOSTILE_SEED", "1"))
GOOD_RATE = 200
"""Good clients' requests a second."""


@pytest.fixture(scope="module", params=["fast", "starlette"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One worker with short timeouts."""
    directory: Path = tmp_path_factory.mktemp("hostile")
    write_linear(directory / "models")
    settings = (
        f"data.door={request.param}",
        "data.header_timeout_s=1",
        "data.body_timeout_s=1",
        "data.write_timeout_s=1",
    )
    made = Gateway(directory / "models", directory / "state", settings=settings).start()
    yield made
    assert made.stop() == 0, made.said()


@pytest.mark.parametrize("case", MATRIX)
def test_what_parsers_differ_in_is_read_in_one_way(gateway: Gateway, case: str) -> None:
    """Each case has its answers, in order, and after a refusal the connection ends."""
    data, statuses = MATRIX[case]
    with Wire(gateway.data_url, 10) as wire:
        wire.send(data)
        assert [wire.reply().status for _ in statuses] == statuses
        if statuses[-1] == 400 and case != GOES_ON:
            with pytest.raises(ConnectionError):
                wire.reply()


def test_hostile_exchanges_are_refused_or_answered(gateway: Gateway) -> None:
    """One of each kind and some hundreds drawn: 2xx, 4xx or 503, nothing told, the same worker, good clients served."""
    (pid,) = gateway.pids("worker")
    beside, told = Beside(gateway.data_url, pid, 60, GOOD_RATE), Told()
    uvloop.run(play(gateway.data_url, [*one_of_each(SEED), *exchanges(SEED, 400)], told))
    seen = beside.told(now=True)
    assert told.bad == []
    assert {"200", "400", "404", "408", "413"} <= set(told.statuses)
    assert gateway.pids("worker") == [pid]
    assert seen["wrong"] == []
    assert seen["good"] >= 0.95 * seen["sent"], seen
    assert seen["worker_stall_ms"] <= seen["bare_stall_ms"] + 150, seen
    with Wire(gateway.data_url) as wire:
        assert wire.exchange(infer("linear", [[1, 2, 3, 4]])).status == 200
