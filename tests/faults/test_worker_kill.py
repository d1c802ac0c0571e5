"""kill -9 of a worker: what it has in flight fails, and nothing else."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from bench.serving import Gateway
from bench.steady import Steady, SteadyPlan
from gateway.audit.event import Prediction
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.onnx_models import write_linear
from tests.e2e.test_lame_duck import source_of_process, states, until
from tests.e2e.wire import infer

ASK = infer("linear", [[1.0, 2.0, 3.0, 4.0]])
CLIENTS = 16
"""With each of two think times: 32 connections, half of them in use at any moment."""
KILLS = 3
NOTICED_S = 5.0
"""From a kill until its clients have entered it, on a machine that does other things as well."""


def _logged(state_dir: Path) -> set[str]:
    """Ids of all predictions in the spool."""
    feed, found = SpoolFeed(state_dir / "spool"), set()
    while events := feed.read(10_000, 0).events:
        found |= {event.id for event in events if isinstance(event, Prediction)}
    return found


def test_only_what_the_killed_worker_has_in_flight_fails(tmp_path: Path) -> None:
    """Of 32 kept connections to two workers only those to the killed one fail, each once and at that moment; all that
    was answered is in the log."""
    write_linear(tmp_path / "models")
    plan = SteadyPlan(
        path="/v2/models/linear/infer",
        body=ASK.partition(b"\r\n\r\n")[2],
        requests=10**9,
        thinks_s=(0.0, 0.05),
        clients=CLIENTS,
        keeps_ids=True,
    )
    killed: list[tuple[str, float]] = []
    with Gateway(tmp_path / "models", tmp_path / "state", workers=2) as gateway:
        steady = Steady(gateway.data_url, plan).start()
        steady.await_sent(20 * CLIENTS, 30)
        began_s = time.monotonic() - steady.elapsed_s
        for turn in range(KILLS):
            pid = gateway.pids("worker")[turn % 2]
            source = source_of_process(pid)
            at_s = time.monotonic() - began_s
            os.kill(pid, signal.SIGKILL)
            killed.append((source, at_s))
            gateway.await_successor("worker", pid)
            until(lambda: states(gateway) == ["serving"] * 2, gateway)
            sent = steady.sent
            steady.await_sent(sent + 20 * CLIENTS, 30)
        steady.stop()
        report = steady.join(40)
    assert set(report.failures_by_kind) <= {"reset", "closed", "cut"}, report
    assert report.failed == len(report.first_failures) > 0
    # A kill's failures come before the next kill, however soon a successor let that one follow.
    until_s = [at_s - 0.05 for _, at_s in killed[1:]] + [float("inf")]
    seen = 0
    for (source, at_s), next_s in zip(killed, until_s, strict=True):
        hit = [f for f in report.first_failures if at_s - 0.05 <= f.at_s < min(at_s + NOTICED_S, next_s)]
        assert len(hit) <= 2 * CLIENTS
        # Of a new connection nobody knows yet whose it is; these were all used before.
        assert {f.last_id.split("-")[0] for f in hit} <= {source}, (source, hit)
        seen += len(hit)
    assert seen == report.failed
    lost = set(report.identities) - _logged(tmp_path / "state")
    assert lost == set()
