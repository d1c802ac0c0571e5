"""Drain: SIGTERM answers what was accepted, then ends with status 0."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from bench.serving import Gateway, cpu_s
from gateway.audit.event import Prediction
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.onnx_models import write_linear, write_turns
from tests.e2e.test_hostile import connect, post, reply, row
from tests.e2e.wire import Wire, infer

MOST_TURNS = 4000


def _turns_for(wire: Wire, wanted_s: float) -> int:
    """How many turns take about `wanted_s` on this machine."""
    started = time.monotonic()
    reply = wire.exchange(infer("turns", [[40.0, 0, 0, 0]], x_request_timeout_ms="20000"))
    assert reply.status == 200, reply.body
    return max(40, min(MOST_TURNS, round(40 * wanted_s / (time.monotonic() - started))))


def _await_running(pid: int, timeout_s: float = 10) -> None:
    """Wait until the worker computes: its processor time grows."""
    before, deadline = cpu_s(pid), time.monotonic() + timeout_s
    while cpu_s(pid) < before + 0.05:
        assert time.monotonic() < deadline, "the request was not taken up"
        time.sleep(0.005)


def test_sigterm_answers_what_is_in_flight(tmp_path: Path) -> None:
    """A request that runs when SIGTERM comes gets its whole answer; the gateway exits 0."""
    write_turns(tmp_path / "models")
    gateway = Gateway(tmp_path / "models", tmp_path / "state").start()
    try:
        with Wire(gateway.data_url) as wire:
            turns = _turns_for(wire, 1.0)
            worker = gateway.pids("worker")[0]
            wire.send(infer("turns", [[turns, 1, 2, 3]], "late", x_request_timeout_ms="20000"))
            _await_running(worker)
            gateway.terminate()
            reply = wire.reply()
            assert reply.status == 200, reply.body
            content = json.loads(reply.body)
            assert content["id"] == "late"
            assert content["outputs"][0]["data"] == [turns, 1, 2, 3]
        assert gateway.wait(20) == 0, gateway.said()
    finally:
        gateway.stop()


def test_sigterm_with_idle_connections_ends_soon(tmp_path: Path) -> None:
    """Kept-alive connections that ask nothing do not hold the drain."""
    write_linear(tmp_path / "models")
    gateway = Gateway(tmp_path / "models", tmp_path / "state", workers=2).start()
    try:
        wires = [Wire(gateway.data_url) for _ in range(4)]
        assert {w.exchange(infer("linear", [[1, 2, 3, 4]])).status for w in wires} == {200}
        started = time.monotonic()
        gateway.terminate()
        assert gateway.wait(20) == 0, gateway.said()
        assert time.monotonic() - started < 10
        for wire in wires:
            with pytest.raises(ConnectionError):
                wire.exchange(infer("linear", [[1, 2, 3, 4]]))
            wire.close()
    finally:
        gateway.stop()


def test_a_restart_on_the_same_state_serves_again(tmp_path: Path) -> None:
    """After a drain the next start takes the state directory over and answers with new ids."""
    write_linear(tmp_path / "models")
    ids = []
    for _ in range(2):
        with (
            Gateway(tmp_path / "models", tmp_path / "state") as gateway,
            Wire(gateway.data_url) as wire,
        ):
            reply = wire.exchange(infer("linear", [[1, 2, 3, 4]]))
            assert reply.status == 200
            ids.append(reply.fields["x-prediction-id"])
    source, epoch, _ = ids[0].split("-")
    later_source, later_epoch, _ = ids[1].split("-")
    assert source == later_source
    assert int(later_epoch, 16) > int(epoch, 16)


def test_refusals_of_the_last_second_are_in_the_log(tmp_path: Path) -> None:
    """Refusals that are summed at the time of SIGTERM are logged before the epoch closes."""
    write_linear(tmp_path / "models")
    gateway = Gateway(tmp_path / "models", tmp_path / "state").start()
    try:
        with Wire(gateway.data_url) as wire:
            for _ in range(400):
                assert wire.exchange(infer("linear", [[1, 2, 3]])).status == 400
        gateway.terminate()
        assert gateway.wait(20) == 0, gateway.said()
        counted, feed = 0, SpoolFeed(tmp_path / "state" / "spool")
        while events := feed.read(10_000, 0).events:
            counted += sum(e.count for e in events if isinstance(e, Prediction) and e.kind == "refused")
        assert counted == 400
    finally:
        gateway.stop()


def test_sigterm_in_the_middle_of_a_request_answers_it_and_closes(tmp_path: Path) -> None:
    """A request of which half has come is answered, and its connection does not hold the drain."""
    write_linear(tmp_path / "models")
    gateway = Gateway(tmp_path / "models", tmp_path / "state").start()
    try:
        message = post(row())
        with connect(gateway) as sock:
            sock.sendall(message)
            assert b"200" in reply(sock)
            sock.sendall(message[:-5])
            time.sleep(0.1)
            os.kill(gateway.pid, signal.SIGTERM)
            time.sleep(0.3)
            sock.sendall(message[-5:])
            assert b"200" in reply(sock)
            assert sock.recv(10) == b""
        assert gateway.wait(15) == 0, gateway.said()
    finally:
        gateway.kill9_all()
