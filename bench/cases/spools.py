"""Spools for the cases of the forwarder: runs as a worker makes them, laid down as a recorder would."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench import profile
from gateway.audit.frame import seal
from gateway.audit.spool import epoch_path, segment_name
from gateway.recording import RunFacts

DISTINCT_RUNS = 256
SEGMENT_BYTES = 64 << 20
SOURCES = 2
"""Epochs, each on a partition of its own, as of two workers."""
CAPTURE_MAX_BYTES = 65_536


class Runs(NamedTuple):
    """Frames' contents of runs of so many requests each."""

    requests: int
    payloads: list[bytes]


def runs(directory: Path, sizes: Sequence[int]) -> list[Runs]:
    """Runs of each size, all with inputs of their own: 30 floats, one row a request, through the real door."""
    directory.mkdir(parents=True)
    loop = asyncio.new_event_loop()
    try:
        rig = profile.Rig(directory, loop)
        rng = random.Random(7)  # noqa: S311
        made = [Runs(size, []) for size in sizes]
        doors = rig.doors
        for number in range(DISTINCT_RUNS):
            for found in made:
                rig.doors = doors[: found.requests]
                rig.requests = profile.requests(rng, found.requests)
                found.payloads.append(_payload(rig, number))
        return made
    finally:
        loop.close()


def _payload(rig: profile.Rig, number: int) -> bytes:
    def whole() -> None:
        rig.arrive()
        rig.turn()

    facts = RunFacts(rig.version, profile.one_batch(rig, whole), number, None, time.perf_counter_ns())
    (frame,) = facts.frames((rig.core.appender.max_frame_bytes, CAPTURE_MAX_BYTES))
    return bytes(frame[0])


def fill(state_dir: Path, of: Runs, events: int) -> int:
    """A spool of about so many events in two epochs; returns how many."""
    each = events // SOURCES // of.requests
    for source in range(1, SOURCES + 1):
        epoch = epoch_path(state_dir / "spool", source, 1)
        epoch.path.mkdir(parents=True)
        for first in range(0, each, _frames_of_a_segment(of)):
            path = epoch.path / segment_name(first * of.requests)
            last = min(first + _frames_of_a_segment(of), each)
            with path.open("wb") as file:
                for number in range(first, last):
                    payload = of.payloads[number % len(of.payloads)]
                    file.write(seal(number * of.requests, of.requests, payload))
        (epoch.path / "synced").write_bytes((each * of.requests).to_bytes(8, "little"))
    return each * of.requests * SOURCES


def _frames_of_a_segment(of: Runs) -> int:
    return max(1, SEGMENT_BYTES // len(of.payloads[0]))
