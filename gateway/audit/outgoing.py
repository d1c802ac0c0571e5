"""Outgoing: a frame's records, and gaps in place of what cannot be sent.

spool -> **outgoing** -> batch. What no topic would take (too large for this one, unreadable, or damaged on disk) is
told by a gap that has its numbers and is written to `quarantine.jsonl`; it stays in the spool, and nothing waits
behind it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.audit.batch import Parcel
from gateway.audit.envelope import Envelope
from gateway.audit.event import Event, Gap
from gateway.audit.frame import Frame, expand
from gateway.audit.identity import id_prefix
from gateway.audit.spool import EpochPath, EpochReader, closed, segments, synced_seq
from gateway.audit.values import values_of

log = logging.getLogger("tidegate.forwarder")


REMEMBERED = 10_000
QUARANTINE_MAX_BYTES = 8 * 1024 * 1024
"""Then the file is put aside as `.1` and begun anew: clients decide how many records are too large."""
TOLD_PER_S = 10
"""Log lines; the file has them all."""


class Outgoing:
    """Makes frames of one spool into records.

    Args:
        directory: of the forwarder; `quarantine.jsonl` is there.
        encoding: of values, "msgpack" or "json".
    """

    def __init__(self, directory: Path, gateway_id: str, encoding: str) -> None:
        self._directory = directory
        self._gateway_id = gateway_id
        self._encoding = encoding
        self._envelopes: dict[int, Envelope] = {}
        self._quarantined: dict[str, None] = {}
        """The last ones: a batch that is sent again is not told again."""
        self._failing: set[str] = set()
        """Epochs that the disk did not give, told once."""
        self.quarantined = 0
        """Events and frames that were told by a gap instead of being sent."""
        self._second = self._told = 0

    def parcels(
        self, reader: EpochReader, epoch: EpochPath, from_seq: int, largest_bytes: int
    ) -> Iterator[Parcel]:
        """An epoch's records from a number on, frame by frame, with gaps for what is damaged.

        Numbers behind the last frame that can be read are waited for until the epoch is over: then a gap has them.
        Where the disk fails this ends, as that may pass; all of it is still to come.

        Args:
            largest_bytes: of a value that the topic takes.
        """
        synced = synced_seq(epoch)
        damaged: list[tuple[int, int]] = []
        at_seq = from_seq
        try:
            for frame in reader.frames(from_seq, damaged):
                while damaged:
                    yield self._lost(epoch, *damaged.pop(0))
                yield self.parcel(epoch, frame, largest_bytes).after(from_seq)
                at_seq = frame.next_seq
        except OSError as exc:
            if epoch.key not in self._failing:
                self._failing.add(epoch.key)
                log.error(
                    "segment_unreadable",
                    extra={
                        "epoch": epoch.key,
                        "why": exc.strerror,
                        "meanwhile": "other records are sent; tried again",
                    },
                )
            return
        self._failing.discard(epoch.key)
        if at_seq < synced and closed(epoch) is not None and segments(epoch):
            yield self._lost(epoch, at_seq, synced)

    def parcel(self, epoch: EpochPath, frame: Frame, largest_bytes: int) -> Parcel:
        """A frame's records, each with the number behind it; see `parcels`."""
        envelope = self._envelope(epoch)
        following = range(frame.first_seq + 1, frame.next_seq + 1)
        try:
            made = None
            if self._encoding == "msgpack":
                made = values_of(epoch.source, epoch.epoch, frame)
            if made is not None:
                parcel = envelope.of_values(made, following)
            else:
                parcel = envelope.of_events(expand(epoch.source, epoch.epoch, frame), following)
        except Exception as exc:  # whatever it is that cannot be read, the rest must go on
            gap = self._quarantine(epoch, frame, "corrupt", why=f"{type(exc).__name__}: {str(exc)[:200]}")
            return envelope.of_events([gap], [frame.next_seq])
        if max(map(len, parcel.values), default=0) > largest_bytes:
            return self._without_large(epoch, parcel, envelope, largest_bytes)
        return parcel

    def _lost(self, epoch: EpochPath, from_seq: int, end_seq: int) -> Parcel:
        """Numbers whose frames are damaged."""
        numbers = Frame(from_seq, end_seq - from_seq, b"")
        gap = self._quarantine(epoch, numbers, "corrupt", why="its segment is damaged there")
        return self._envelope(epoch).of_events([gap], [end_seq])

    def _envelope(self, epoch: EpochPath) -> Envelope:
        envelope = self._envelopes.get(epoch.source)
        if envelope is None:
            envelope = Envelope(self._gateway_id, epoch.source, self._encoding)
            self._envelopes[epoch.source] = envelope
        return envelope

    def _without_large(
        self, epoch: EpochPath, parcel: Parcel, envelope: Envelope, largest_bytes: int
    ) -> Parcel:
        keys, values = list(parcel.keys), list(parcel.values)
        times_ms, heads = list(parcel.times_ms), list(parcel.heads)
        for index, value in enumerate(parcel.values):
            if len(value) > largest_bytes:
                one = Frame(parcel.next_seqs[index] - 1, 1, b"")
                gap = self._quarantine(epoch, one, "oversized", bytes=len(value))
                instead = envelope.of_events([gap], [one.next_seq])
                keys[index], values[index] = instead.keys[0], instead.values[0]
                times_ms[index], heads[index] = instead.times_ms[0], instead.heads[0]
        return Parcel(parcel.next_seqs, keys, values, times_ms, heads)

    def _quarantine(self, epoch: EpochPath, frame: Frame, cause: str, **facts: object) -> Event:
        """Numbers that stay in the spool only; the gap that stands in their place."""
        event_id = f"{id_prefix(epoch.source, epoch.epoch)}{frame.first_seq:016x}"
        if event_id not in self._quarantined:
            self._quarantined[event_id] = None
            if len(self._quarantined) > REMEMBERED:
                del self._quarantined[next(iter(self._quarantined))]
            self.quarantined += 1
            line = json.dumps({"id": event_id, "count": frame.count, "cause": cause, **facts})
            with contextlib.suppress(OSError):
                _append(self._directory / "quarantine.jsonl", f"{line}\n".encode())
            self._tell({"id": event_id, "cause": cause, **facts})
        return Gap(
            source=f"{epoch.source:016x}",
            epoch=epoch.epoch,
            from_seq=frame.first_seq,
            to_seq=frame.next_seq - 1,
            cause=cause,
            at_ns=time.time_ns(),
            id=event_id,
        )

    def _tell(self, facts: dict[str, object]) -> None:
        second = time.monotonic_ns() // 1_000_000_000
        if second != self._second:
            self._second, self._told = second, 0
        self._told += 1
        if self._told <= TOLD_PER_S:
            log.warning("record_quarantined", extra=facts)


def _append(path: Path, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, line)
        over = os.fstat(fd).st_size >= QUARANTINE_MAX_BYTES
    finally:
        os.close(fd)
    if over:
        path.rename(path.with_suffix(".jsonl.1"))
