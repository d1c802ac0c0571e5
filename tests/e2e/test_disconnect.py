"""A client that goes away while its request waits: the request is not run, and the log says cancelled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.serving import Gateway
from gateway.audit.event import Prediction
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.onnx_models import write_turns
from tests.e2e.test_drain import _await_running, _turns_for
from tests.e2e.wire import Wire, infer


@pytest.fixture(params=["fast", "starlette"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gateway]:
    """One worker, one lane."""
    write_turns(tmp_path / "models")
    made = Gateway(tmp_path / "models", tmp_path / "state", settings=(f"data.door={request.param}",)).start()
    yield made
    made.stop()


def test_who_leaves_while_waiting_is_logged_as_cancelled(gateway: Gateway, tmp_path: Path) -> None:
    """Two wait behind a long run, one of them pipelined behind another; both clients leave, the third is answered."""
    patient = {"x_request_timeout_ms": "20000"}
    with Wire(gateway.data_url) as wire:
        turns = _turns_for(wire, 1.5)
        worker = gateway.pids("worker")[0]
        wire.send(infer("turns", [[turns, 1, 2, 3]], "stays", **patient))
        _await_running(worker)
        alone, pipelined = Wire(gateway.data_url), Wire(gateway.data_url)
        alone.send(infer("turns", [[1, 0, 0, 0]], "left-1", **patient))
        pipelined.send(
            infer("turns", [[1, 0, 0, 0]], "left-2", **patient)
            + infer("turns", [[1, 0, 0, 0]], "never-begun", **patient)
        )
        time.sleep(0.1)
        alone.close()
        pipelined.close()
        assert wire.reply().status == 200
        assert wire.exchange(infer("turns", [[1, 0, 0, 0]], "later", **patient)).status == 200
    assert gateway.stop() == 0
    found: dict[str | None, str] = {}
    feed = SpoolFeed(tmp_path / "state" / "spool")
    while events := feed.read(10_000, 0).events:
        found |= {e.request_id: e.kind for e in events if isinstance(e, Prediction)}
    told = {name: kind for name, kind in found.items() if name is not None}
    assert told["left-1"] == "cancelled", told
    if "door=fast" in " ".join(gateway.command):
        assert told["left-2"] == "cancelled", told
    assert "never-begun" not in told
