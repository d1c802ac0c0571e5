"""`append-pressure`: how long one append takes at worst while another process writes hard to the log's disk.

A ring and the real recorder behind it, in memory and in the state directory in turn; a neighbour writes 256 MiB over
and over on the same file system and syncs. The append is timed alone, some hundreds a second. One during which the
processor was taken away (an involuntary switch) says nothing of the log and is counted apart; one that waits for the
disk switches on its own account, and counts. In between the same bytes are summed and copied into private memory: the
worst of that is what the machine does to anybody.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from bench import report
from bench.cases.case import Bench, Case
from gateway import config as configuration
from gateway.audit.source import claim_source
from gateway.audit.writer import Writer
from gateway.process import Context

GATEWAY_ID = "00000000be7c4000"
RING_BYTES = 32 * 1024 * 1024
PAYLOAD_BYTES = 8 * 1024
"""About a run of 32 with 30 FP32 inputs each."""
COUNT = 32
EVERY_S = 0.001
PRESSURE_BYTES = 256 * 1024 * 1024
GOALS_MS = {"memory": 1.0, "state_dir": 5.0}
WARM_UP_S = 0.5
START_S = 10.0
_PRESS = """
import os, sys, time
path, size, end = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
fd = os.open(path, os.O_WRONLY | os.O_CREAT)
block, at, done = os.urandom(4 << 20), 0, 0
while time.monotonic() < end:
    done += os.pwrite(fd, block, at)
    at = (at + len(block)) % size
    if not at % (32 << 20):
        os.fdatasync(fd)
print(done)
"""
_ROOT = Path(__file__).resolve().parents[2]


class Round(msgspec.Struct, frozen=True):
    """One kind of ring under pressure, for some seconds."""

    ring: str
    worst_ms: float
    p99_us: float
    copy_worst_ms: float
    appends: int
    full: int
    """Appends that found no room."""
    pressed_bytes: int
    """What the neighbour wrote."""

    preempted: int
    """Appends that are left out."""


def append_pressure(bench: Bench) -> Case:
    """Rounds of both rings in turn."""
    found: list[Round] = []
    for number in range(bench.options.rounds):
        for ring in GOALS_MS:
            one = _round(bench.scratch / f"{ring}-{number}", ring, max(1.0, bench.options.seconds))
            found.append(one)
            bench.progress(
                f"round {number + 1}/{bench.options.rounds}, {ring}: worst {one.worst_ms:.2f} ms,"
                f" copy {one.copy_worst_ms:.2f} ms, p99 {one.p99_us:.0f} us"
            )
    rows: list[report.Row] = []
    for ring, goal_ms in GOALS_MS.items():
        mine = [one for one in found if one.ring == ring]
        worst = report.interval([one.worst_ms for one in mine])
        copy = report.interval([one.copy_worst_ms for one in mine])
        rows += [
            report.at_most(f"worst append, ring in {ring}", worst, goal_ms, " ms"),
            report.Row("worst copy into private memory beside it", f"{copy.text(2)} ms"),
            report.Row("the most of all rounds", f"{max(one.worst_ms for one in mine):.2f} ms"),
            report.Row("99th percentile", f"{report.interval([one.p99_us for one in mine]).text(1)} us"),
            report.Row(
                "appends; that found no room; left out",
                f"{sum(one.appends for one in mine):,}; {sum(one.full for one in mine)};"
                f" {sum(one.preempted for one in mine)}",
            ),
        ]
    pressed = report.interval([one.pressed_bytes / max(1.0, bench.options.seconds) / 2**20 for one in found])
    rows.append(report.Row("the neighbour wrote", f"{pressed.text(0)} MiB a second"))
    title = "appends while a neighbour writes to the same disk"
    return Case(name="append-pressure", title=title, rows=rows, details=found)


def _round(state_dir: Path, ring: str, seconds: float) -> Round:
    state_dir.mkdir(mode=0o700)
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-", dir="/dev/shm") as memory:  # noqa: S108
        ring_dir = Path(memory) if ring == "memory" else state_dir / "ring"
        ring_dir.mkdir(exist_ok=True)
        source = claim_source(state_dir, GATEWAY_ID, "worker", ring_dir, RING_BYTES)
        writer = Writer(source, GATEWAY_ID)
        with _recorder(state_dir, ring_dir):
            deadline = time.monotonic() + START_S
            while not writer.synced(writer.ring.committed):
                if time.monotonic() > deadline:
                    msg = "the recorder did not start"
                    raise ValueError(msg)
                time.sleep(0.01)
            presser = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _PRESS, str(state_dir / "pressure"), str(PRESSURE_BYTES),
                 str(seconds + WARM_UP_S)],
                stdout=subprocess.PIPE,
            )  # fmt: skip
            time.sleep(WARM_UP_S)
            found = _appends(writer, seconds)
            pressed = int(presser.communicate(timeout=60)[0])
    (state_dir / "pressure").unlink()
    return Round(
        ring=ring,
        worst_ms=float(found.append_ns.max()) / 1e6,
        p99_us=float(np.percentile(found.append_ns, 99)) / 1e3,
        copy_worst_ms=float(found.copy_ns.max()) / 1e6,
        appends=len(found.append_ns),
        full=found.full,
        pressed_bytes=pressed,
        preempted=found.preempted,
    )


class _Timed(NamedTuple):
    """What each append and each copy took that kept the processor."""

    append_ns: np.ndarray
    copy_ns: np.ndarray
    full: int
    preempted: int


def _taken_away() -> int:
    """Times that this thread lost the processor against its will."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _appends(writer: Writer, seconds: float) -> _Timed:
    """Appends and copies, one after the other, each millisecond at most."""
    payload = os.urandom(PAYLOAD_BYTES)
    private = memoryview(mmap.mmap(-1, RING_BYTES))
    took: list[int] = []
    copied: list[int] = []
    full = preempted = at = 0
    clock = time.perf_counter_ns
    gc.disable()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            before, began = _taken_away(), clock()
            appended = writer.append_run(payload, COUNT)
            ended, between = clock(), _taken_away()
            restarted = clock()
            zlib.crc32(payload)
            private[at : at + PAYLOAD_BYTES] = payload
            done, after = clock(), _taken_away()
            at = (at + PAYLOAD_BYTES) % RING_BYTES
            if between == before:
                took.append(ended - began)
            if after == between:
                copied.append(done - restarted)
            preempted += between != before
            full += appended is None
            time.sleep(EVERY_S)
    finally:
        gc.enable()
    return _Timed(np.array(took), np.array(copied), full, preempted)


@contextmanager
def _recorder(state_dir: Path, ring_dir: Path) -> Iterator[None]:
    """The recorder's own process, ended by SIGTERM."""
    config, _ = configuration.load(None, [f"state_dir={state_dir}"], {})
    context = Context(
        config=configuration.encode(config),
        models="",
        state_dir=str(state_dir),
        gateway_id=GATEWAY_ID,
        ring_dir=str(ring_dir),
    )
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "gateway.audit.recorder"],
        env={**context.to_env(), "PYTHONPATH": str(_ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        child.kill()
        child.wait()
