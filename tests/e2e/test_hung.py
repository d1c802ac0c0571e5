"""Models that do not end: whoever asked is told at the deadline, all others are served, by the same worker."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from bench.serving import Gateway
from tests.e2e.onnx_models import write_deaf, write_linear, write_turns
from tests.e2e.wire import Wire, infer

DEADLINE_MS = 500
LATE_S = 1.0
"""A reply may come so much later on a machine that does other things as well."""
OTHERS_MIN = 8
"""So many are answered while one run does not end: on the loop, it would let through one before it, one that waited,
and what comes until this test has seen its own reply."""
ENDLESS = {
    "turns": infer("turns", [[1e6, 0.0, 0.0, 0.0]], x_request_timeout_ms=str(DEADLINE_MS)),
    "deaf": infer("deaf", [[5_000.0, 0.0, 0.0, 0.0]], x_request_timeout_ms=str(DEADLINE_MS)),
}
"""A loop of a million turns, each a product of its own; and one operator that nothing ends before it is through."""
OTHER = infer("linear", [[1.0, 2.0, 3.0, 4.0]])


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two lanes."""
    base = tmp_path_factory.mktemp("hung")
    write_linear(base / "models")
    write_turns(base / "models")
    write_deaf(base / "models")
    with Gateway(base / "models", base / "state", settings=("batch.lanes=2",)) as serving:
        yield serving


@pytest.mark.parametrize("model", ENDLESS)
def test_it_is_answered_at_its_deadline_and_the_worker_goes_on(one_worker: Gateway, model: str) -> None:
    """503 at the deadline, not before; meanwhile another model answers; afterwards it is the same process."""
    pids = one_worker.pids("worker")
    stop = threading.Event()
    answered = 0

    def ask_other() -> None:
        nonlocal answered
        with Wire(one_worker.data_url) as wire:
            while not stop.is_set():
                assert wire.exchange(OTHER).status == 200
                answered += 1
                time.sleep(0.002)

    thread = threading.Thread(target=ask_other)
    thread.start()
    try:
        with Wire(one_worker.data_url) as wire:
            for _ in range(2):
                began, before = time.monotonic(), answered
                reply = wire.exchange(ENDLESS[model])
                took_s = time.monotonic() - began
                assert reply.status == 503, reply.body
                assert json.loads(reply.body)["code"] in {"deadline_exceeded", "overloaded"}
                if json.loads(reply.body)["code"] == "deadline_exceeded":
                    assert DEADLINE_MS / 1e3 - 0.02 <= took_s <= DEADLINE_MS / 1e3 + LATE_S
                    assert answered - before >= OTHERS_MIN
    finally:
        stop.set()
        thread.join()
    assert one_worker.pids("worker") == pids
    assert "run_hung_on_loop" not in one_worker.said()
    with Wire(one_worker.data_url) as wire:
        assert wire.exchange(infer("turns", [[1.0, 0.0, 0.0, 0.0]])).status == 200
