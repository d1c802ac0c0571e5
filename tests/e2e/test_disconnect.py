"""A client that goes away while its request waits: the request is not run, and the log says cancelled."""

from __future__ import annotations

import time

from bench.serving import Gateway
from gateway.audit.event import Prediction
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.test_drain import _await_running, _turns_for
from tests.e2e.wire import Wire, infer


def test_who_leaves_while_waiting_is_logged_as_cancelled(strict: Gateway) -> None:
    """Two wait behind a long run, one of them pipelined behind another; both clients leave, the third is answered."""
    patient = {"x_request_timeout_ms": "20000"}
    with Wire(strict.data_url) as wire:
        turns = _turns_for(wire, 3.0)
        worker = strict.pids("worker")[0]
        wire.send(infer("turns", [[turns, 1, 2, 3]], "stays", **patient))
        _await_running(worker)
        alone, pipelined = Wire(strict.data_url), Wire(strict.data_url)
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
    expected = {"left-1", "left-2"} if "door=fast" in " ".join(strict.command) else {"left-1"}
    told: dict[str | None, str] = {}
    feed, deadline = SpoolFeed(strict.state_dir / "spool"), time.monotonic() + 60
    while not {*expected, "later"} <= set(told):
        assert time.monotonic() < deadline, told
        events = feed.read(10_000, 100).events
        told |= {e.request_id: e.kind for e in events if isinstance(e, Prediction)}
    assert {told[name] for name in expected} == {"cancelled"}
    assert "never-begun" not in told
