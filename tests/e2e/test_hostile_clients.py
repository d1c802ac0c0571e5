"""Nothing that a client sends can hurt the gateway: exchanges drawn from a seed, and the good clients beside them."""

from __future__ import annotations

import os

import pytest
import uvloop

from bench.serving import Gateway
from tests.e2e.hostile_clients import Beside, Told, play
from tests.e2e.hostile_exchanges import exchanges, one_of_each
from tests.e2e.hostile_matrix import GOES_ON, MATRIX
from tests.e2e.wire import Wire, infer

SEED = int(os.environ.get("HOSTILE_SEED", "1"))
GOOD_RATE = 200
"""Good clients' requests a second."""


@pytest.fixture(params=["fast", "starlette"])
def gateway(request: pytest.FixtureRequest, both_doors: dict[str, Gateway]) -> Gateway:
    """One worker with short timeouts."""
    return both_doors[request.param]


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
