"""A worker whose loop stands still is killed within five seconds, and the log says where it stood."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench.serving import Gateway, child_pids
from tests.e2e.onnx_models import write_linear
from tests.e2e.test_lame_duck import states, until
from tests.e2e.wire import Wire, infer

ROOT = Path(__file__).resolve().parents[2]
ASK = infer("linear", [[1.0, 2.0, 3.0, 4.0]])
KILLED_WITHIN_S = 5.0
NOTICED_S = 3.0
"""Until this test has seen it, on a machine that does other things as well."""
STALLER = '''
"""In a worker: when a file comes, the event loop does what the file says, and never comes back."""
import os, sys
if "gateway.worker" in sys.orig_argv:
    import pathlib, threading, time
    import uvloop

    WISH = pathlib.Path({wish!r})
    make = uvloop.new_event_loop

    def sleeps():
        time.sleep(600)

    def spins():
        while True:
            pass

    def recorded():
        loop = make()
        threading.Thread(target=wait, args=(loop,), daemon=True).start()
        return loop

    def wait(loop):
        mine = WISH.with_name("mine-%d" % os.getpid())
        while True:
            time.sleep(0.02)
            try:
                WISH.rename(mine)
            except OSError:
                continue
            stall = {{"sleeps": sleeps, "spins": spins}}[mine.read_text()]
            loop.call_soon_threadsafe(stall)
            return

    uvloop.new_event_loop = recorded
'''


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory):
    """Two workers that can be made to stall by a file."""
    directory = tmp_path_factory.mktemp("stall")
    write_linear(directory / "models")
    (directory / "site").mkdir()
    (directory / "site" / "sitecustomize.py").write_text(STALLER.format(wish=str(directory / "wish")))
    made = Gateway(directory / "models", directory / "state", workers=2)
    made.start(prefix=("env", f"PYTHONPATH={directory / 'site'}:{ROOT}"))
    yield made
    made.stop()


def stalls(gateway: Gateway) -> list[dict[str, Any]]:
    """What the log tells of stalled workers. No stack stands between its lines."""
    lines = gateway.log.read_text().splitlines()
    assert [line for line in lines if line.startswith(("Thread 0x", "Current thread", "  File "))] == []
    told = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in told if line["event"] == "worker_stalled"]


def others_are_answered(gateway: Gateway, stop: threading.Event, failures: list[object]) -> None:
    """New connections all the time: those that the other worker takes are answered."""
    while not stop.is_set():
        with contextlib.suppress(OSError), Wire(gateway.data_url, timeout_s=0.3) as wire:
            reply = wire.exchange(ASK)
            failures.extend([] if reply.status == 200 else [reply])
        stop.wait(0.02)


def gone(gateway: Gateway, workers: list[int]) -> int:
    """The worker that is no longer there; 0: all are."""
    return next((pid for pid in workers if pid not in child_pids(gateway.pid)), 0)


@pytest.mark.parametrize("how", ["sleeps", "spins"])
def test_a_stalled_worker_is_killed_and_its_stack_logged(gateway: Gateway, how: str) -> None:
    """Whether it sleeps in C or spins in Python: killed within 5 s, one event with the stack, the other serves on."""
    workers, before = gateway.pids("worker"), len(stalls(gateway))
    stop, failures = threading.Event(), []
    asking = threading.Thread(target=others_are_answered, args=(gateway, stop, failures))
    asking.start()
    try:
        started = time.monotonic()
        wish = gateway.models.with_name("wish")
        wish.with_suffix(".new").write_text(how)
        wish.with_suffix(".new").rename(wish)
        until(lambda: gone(gateway, workers) != 0, gateway)
        took_s = time.monotonic() - started
        until(lambda: states(gateway) == ["serving"] * 2, gateway)
    finally:
        stop.set()
        asking.join(10)
    assert took_s <= KILLED_WITHIN_S + NOTICED_S
    assert failures == []
    (told,) = stalls(gateway)[before:]
    assert told["child"] in {"worker-0", "worker-1"}
    assert told["for_s"] < KILLED_WITHIN_S
    assert f"in {how}\n" in told["stack"]
    assert "gateway/worker.py" in told["stack"]


def test_a_worker_that_cannot_say_where_it_stands_is_killed_in_the_same_time(gateway: Gateway) -> None:
    """One that is stopped (SIGSTOP) writes no stack; the event says so with null."""
    workers, before = gateway.pids("worker"), len(stalls(gateway))
    started = time.monotonic()
    os.kill(workers[0], signal.SIGSTOP)
    until(lambda: gone(gateway, workers) == workers[0], gateway)
    assert time.monotonic() - started <= KILLED_WITHIN_S + NOTICED_S
    until(lambda: states(gateway) == ["serving"] * 2, gateway)
    (told,) = stalls(gateway)[before:]
    assert told["for_s"] < KILLED_WITHIN_S
    assert not told.get("stack")
