"""Outgoing: a frame's records, and gaps in place of what cannot be sent.

spool -> **outgoing** -> batch. What no topic would take (too large for this one, or unreadable) is told by a gap that
has its numbers and is written to `quarantine.jsonl`; it stays in the spool, and nothing waits behind it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path

from gateway.audit.batch import Parcel
from gateway.audit.envelope import Envelope
from gateway.audit.event import Event, Gap
from gateway.audit.frame import Frame, expand
from gateway.audit.identity import id_prefix
from gateway.audit.spool import EpochPath
from gateway.audit.values import values_of

log = logging.getLogger("tidegate.forwarder")


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
        self._quarantined: set[str] = set()

    @property
    def quarantined(self) -> int:
        """Events and frames that were told by a gap instead of being sent."""
        return len(self._quarantined)

    def parcel(self, epoch: EpochPath, frame: Frame, largest_bytes: int) -> Parcel:
        """A frame's records, each with the number behind it.

        Args:
            largest_bytes: of a value that the topic takes.
        """
        envelope = self._envelopes.get(epoch.source)
        if envelope is None:
            envelope = Envelope(self._gateway_id, epoch.source, self._encoding)
            self._envelopes[epoch.source] = envelope
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
            self._quarantined.add(event_id)
            line = json.dumps({"id": event_id, "count": frame.count, "cause": cause, **facts})
            with contextlib.suppress(OSError), (self._directory / "quarantine.jsonl").open("a") as file:
                file.write(line + "\n")
            log.warning("record_quarantined", extra={"id": event_id, "cause": cause, **facts})
        return Gap(
            source=f"{epoch.source:016x}",
            epoch=epoch.epoch,
            from_seq=frame.first_seq,
            to_seq=frame.next_seq - 1,
            cause=cause,
            at_ns=time.time_ns(),
            id=event_id,
        )
