"""Histories of a log on a simulated disk, what a power loss leaves of them at any point, and what must hold then.

A history is owners that append, a recorder that drains, rolls, acknowledges, trims and closes, kills of either, and a
disk that refuses now and then. At each change of the disk the power may go: `Loss` is what is left.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.audit import drain as drain_module
from gateway.audit import recorder as recorder_module
from gateway.audit import source as source_module
from gateway.audit.event import Event, Gap
from gateway.audit.frame import Events, Frame, decode_payload
from gateway.audit.recorder import Recorder
from gateway.audit.source import claim_source
from gateway.audit.spool import closed, epochs, read_epoch, segments
from gateway.audit.writer import Writer
from tests.gateway.audit.sim import GATEWAY_ID, Killed, Log, forget_owner, forget_recorder, label, settle
from tests.gateway.audit.simulated_disk import SECTOR_BYTES, SimulatedDisk, Tree

RING_BYTES = 8192
SMALL_RING_BYTES = 16384
SEGMENT_BYTES = 700
SYNCED_BYTE = 192
Frames = dict[int, tuple[int, bytes]]
"""First number: count and content."""


class Loss(NamedTuple):
    """What a power loss leaves, and what had been promised."""

    tree: Tree
    rings: dict[str, bytes]
    appended: dict[str, Frames]
    """All that each epoch of an owner was ever given."""
    acknowledged: dict[str, set[int]]
    """First numbers of frames that `fsync` was answered for."""
    drawn: dict[str, int]
    trimmed: dict[str, int]
    """Retention took what is below; -1: the whole epoch."""


class Rings:
    """All that each ring's file ever was, and what a power loss makes of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.versions: dict[str, list[bytes]] = {}

    def look(self) -> None:
        """Remember how they are now."""
        for name in os.listdir(self._directory):
            if "." in name:
                continue
            with open(f"{self._directory}/{name}", "rb", buffering=0) as file:
                content = file.read()
            known = self.versions.setdefault(name, [bytes(len(content))])
            if known[-1] != content:
                known.append(content)

    def survivors(self, rng: random.Random, gone: dict[str, bytes]) -> dict[str, bytes]:
        """Each there or not; each sector as old as it likes."""
        there = [path.name for path in self._directory.iterdir() if not path.suffix]
        left = {}
        for name in sorted({*there, *gone}):
            if rng.random() < 0.15 or (name in gone and rng.random() < 0.5):
                continue
            left[name] = _aged(self.versions[name], rng)
        return left


def _aged(versions: list[bytes], rng: random.Random) -> bytes:
    mood = rng.randrange(5)
    if mood == 0:
        return versions[-1]
    oldest = rng.randrange(len(versions))
    header = rng.choice(versions)
    out = bytearray(versions[-1])
    for at in range(0, len(out), SECTOR_BYTES):
        if at == 0:
            source = header if mood < 4 else versions[rng.randrange(oldest, len(versions))]
        elif mood in {1, 2}:
            source = versions[-1] if mood == 1 or rng.random() < 0.9 else rng.choice(versions)
        else:
            source = versions[rng.randrange(oldest, len(versions))]
        out[at : at + SECTOR_BYTES] = source[at : at + SECTOR_BYTES]
    return bytes(out)


class History:
    """One log on one simulated disk, going on by chance.

    Args:
        rng: decides everything; the same seed is the same history.
    """

    def __init__(self, log: Log, rng: random.Random) -> None:
        self.log, self.rng = log, rng
        self.disk = SimulatedDisk(log.state_dir, log.ring_dir, {})
        self.rings = Rings(log.ring_dir)
        self.appended: dict[str, Frames] = {}
        self.ends: dict[str, list[tuple[int, int]]] = {}
        """Of each epoch: position behind a frame, its first number."""
        self.drawn: dict[str, int] = {}
        self.trimmed: dict[str, int] = {}
        self.trims_gaps = rng.random() < 0.25
        """Whether the recorder's own epochs are trimmed, and with them what it told."""
        self.value = 0
        self.recorder = self._recorder()
        self.writer = self._owner()

    def act(self) -> None:
        """One step of somebody."""
        chance = self.rng.random()
        if chance < 0.45:
            self._append()
        elif chance < 0.85:
            self.recorder.step()
        elif chance < 0.89:
            self.disk.refused = self.rng.choice(["sync", "write", "short", "sync_directory"])
            self.recorder.step()
            self.disk.refused = ""
        elif chance < 0.92:
            forget_recorder(self.recorder)
            self.recorder = self._recorder()
        elif chance < 0.98:
            self._trim()
        else:
            if self.rng.random() < 0.5:
                self.writer.close()
                self._note()
            forget_owner(self.writer)
            self.writer = self._owner()
        self.rings.look()

    def loss(self) -> Loss:
        """The power goes now."""
        self.rings.look()
        acknowledged = {}
        for key, ends in self.ends.items():
            synced = int.from_bytes(self.rings.versions[key][-1][SYNCED_BYTE : SYNCED_BYTE + 8], "little")
            acknowledged[key] = {first for end, first in ends if end <= synced}
        return Loss(
            self.disk.survivors(self.rng),
            self.rings.survivors(self.rng, self.disk.gone),
            {key: dict(frames) for key, frames in self.appended.items()},
            acknowledged,
            dict(self.drawn),
            dict(self.trimmed),
        )

    def end(self) -> None:
        """Let go of what this process holds."""
        self.disk.before_each = lambda: None
        forget_recorder(self.recorder)
        forget_owner(self.writer)

    def _recorder(self) -> Recorder:
        return self.log.recorder(self.disk, SEGMENT_BYTES)

    def _owner(self) -> Writer:
        source = claim_source(
            self.log.state_dir, GATEWAY_ID, "worker", self.log.ring_dir, RING_BYTES, self.disk
        )
        self.rings.look()
        writer = Writer(source, GATEWAY_ID)
        self.writer = writer
        self._note()
        return writer

    def _append(self) -> None:
        for _ in range(self.rng.randrange(1, 6)):
            self.value += 1
            if self.writer.append_events([label(self.value, self.rng.randrange(0, 700))]) is None:
                self.writer.lose(self.rng.randrange(1, 4))
            self._note()

    def _note(self) -> None:
        key = self.writer.source.ring_path.name
        ends = self.ends.setdefault(key, [])
        position = ends[-1][0] if ends else 0
        while position < self.writer.ring.committed:
            frames, _, position = self.writer.ring.read(position, 1)
            for frame in frames:
                ends.append((position, frame.first_seq))
                self.appended.setdefault(key, {})[frame.first_seq] = (frame.count, frame.payload)
        self.drawn[key] = self.writer.ring.assigned

    def _trim(self) -> None:
        """As retention does: oldest segments, never the last of an open epoch; what is over and empty goes whole."""
        for epoch in epochs(self.log.spool, self.disk):
            found = segments(epoch, self.disk)
            over = closed(epoch, self.disk) is not None
            if (len(found) < 2 and not over) or (epoch.key not in self.appended and not self.trims_gaps):
                continue
            if over and self.rng.random() < 0.5:
                self.trimmed[epoch.key] = -1
                aside = epoch.path.with_suffix(".removed")
                self.disk.rename(epoch.path, aside)
                self.disk.sync_directory(epoch.path.parent)
                self.disk.remove_tree(aside)
            elif len(found) > 1:
                self.trimmed[epoch.key] = found[1][0]
                self.disk.unlink(found[0][1])


class Boot:
    """Tells rings apart by boot, as the kernel's boot id does."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.number = 1
        patched.setattr(source_module, "boot_id", lambda: self.number)
        patched.setattr(drain_module, "boot_id", lambda: self.number)
        patched.setattr(recorder_module, "SMALL_RING_BYTES", SMALL_RING_BYTES)
        patched.setattr(recorder_module, "RETRY_S", (0.0, 0.0))


def recover(log: Log, loss: Loss, before_each: Callable[[], None] = lambda: None) -> SimulatedDisk:
    """Another boot over what is left, to its end."""
    for path in log.ring_dir.iterdir():
        path.unlink()
    for name, content in loss.rings.items():
        (log.ring_dir / name).write_bytes(content)
    disk = SimulatedDisk(log.state_dir, log.ring_dir, loss.tree)
    disk.before_each = before_each
    recorder = log.recorder(disk, SEGMENT_BYTES)
    try:
        settle(recorder)
        assert recorder.quiet
        recorder.close()
        forget_owner(recorder._own)
    except BaseException:
        disk.before_each = lambda: None
        forget_recorder(recorder)
        raise
    return disk


def lost_again(log: Log, loss: Loss, rng: random.Random) -> Loss | None:
    """The power goes during the recovery, too; None when it was over before."""
    left = rng.randrange(60)
    rings = Rings(log.ring_dir)
    taken: list[Loss] = []

    def before_each() -> None:
        nonlocal left
        rings.look()
        left -= 1
        if left < 0:
            raise Killed

    disk: list[SimulatedDisk] = []
    real = log.recorder

    def recorder(storage: SimulatedDisk, segment_bytes: int) -> Recorder:
        disk.append(storage)
        return real(storage, segment_bytes)

    log.recorder = recorder  # type: ignore[assignment, method-assign]
    try:
        with _closing_what_is_left_open():
            recover(log, loss, before_each)
    except Killed:
        rings.look()
        taken.append(loss._replace(tree=disk[0].survivors(rng), rings=rings.survivors(rng, disk[0].gone)))
    finally:
        log.recorder = real  # type: ignore[method-assign]
    return taken[0] if taken else None


@contextlib.contextmanager
def _closing_what_is_left_open() -> Iterator[None]:
    """A recorder killed while it is made leaves descriptors that nobody knows: the system would close them."""
    opened: set[int] = set()
    real_open, real_close = os.open, os.close

    def open_(*args: Any, **named: Any) -> int:
        fd = real_open(*args, **named)
        opened.add(fd)
        return fd

    def close(fd: int) -> None:
        opened.discard(fd)
        real_close(fd)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "open", open_)
        patched.setattr(os, "close", close)
        try:
            yield
        finally:
            for fd in tuple(opened):
                close(fd)


def check(log: Log, disk: SimulatedDisk, loss: Loss) -> None:
    """What must hold after every power loss."""
    found = {epoch.key: epoch for epoch in epochs(log.spool, disk)}
    frames = {key: list(read_epoch(epoch, 0, disk)) for key, epoch in found.items()}
    gaps = [event for listed in frames.values() for event in events_of(listed) if isinstance(event, Gap)]
    for key, epoch in found.items():
        assert closed(epoch, disk) is not None, key
        ends = [0, *(frame.next_seq for frame in frames[key])]
        for end, frame in zip(ends, frames[key], strict=False):
            assert frame.first_seq >= end, (key, "twice or out of order", end, frame.first_seq)
        kept_from, drawn = loss.trimmed.get(key, 0), loss.drawn.get(key, ends[-1])
        told = [(g.from_seq, g.to_seq) for g in gaps if f"{g.source}-{g.epoch:08x}" == key]
        ranges = [(frame.first_seq, frame.next_seq) for frame in frames[key]]
        ranges += [(first, drawn if last is None else last + 1) for first, last in told]
        if kept_from >= 0 and loss.trimmed.keys() <= loss.appended.keys():
            at = kept_from
            for first, end in sorted(ranges):
                if first <= at:
                    at = max(at, end)
            assert at >= drawn, (key, "a hole that is not told", at, drawn, told)
    for key, appended in loss.appended.items():
        kept_from = loss.trimmed.get(key, 0)
        there = {frame.first_seq: (frame.count, frame.payload) for frame in frames.get(key, [])}
        assert all(appended[first] == content for first, content in there.items()), (key, "not as appended")
        missing = {first for first in loss.acknowledged[key] if first >= kept_from >= 0} - set(there)
        assert not missing, (key, "acknowledged and gone", sorted(missing))


def events_of(frames: list[Frame]) -> list[Event]:
    """Whole events of frames."""
    out: list[Event] = []
    for frame in frames:
        content = decode_payload(frame.payload)
        if isinstance(content, Events):
            out += content.events
    return out
