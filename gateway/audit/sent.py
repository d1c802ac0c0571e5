"""Positions: where each epoch stands in the topic, in one file that is replaced whole.

forwarder <-> **positions**, read by the recorder's retention and by `audit status`. An epoch's partition is on disk
before its first record is sent, and stays; a position moves when the brokers have acknowledged, and is saved a moment
later: a crash between costs doubles, never a record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Set
from pathlib import Path

import msgspec

from gateway.audit.storage import DISK, replace

log = logging.getLogger("tidegate.forwarder")

SAVE_S = 0.1
"""Positions that move are saved so often."""


class Positions:
    """The position file: {"<source>-<epoch>": {"partition": p, "next_seq": n, "offset": o}}.

    `offset`, once there is one, is where the topic has the epoch's last acknowledged record.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.entries: dict[str, dict[str, int]] = {}
        try:
            self.entries = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, int]])
        except FileNotFoundError:
            pass
        except msgspec.MsgspecError:
            log.warning("positions_unreadable", extra={"meanwhile": "the whole spool is sent again"})
        self._saved_s = 0.0
        self._dirty = False

    def entry(self, key: str, partitions: int) -> dict[str, int]:
        """An epoch's entry; a new one gets its partition, on disk before it is used.

        So does one whose partition the topic does not have (any more): it begins anew.
        """
        found = self.entries.get(key)
        if found is None or found["partition"] >= partitions:
            used = [0] * partitions
            for other in self.entries.values():
                if other["partition"] < partitions:
                    used[other["partition"]] += 1
            found = {"partition": used.index(min(used)), "next_seq": 0}
            self.entries[key] = found
            self.save()
        return found

    def offsets(self, partitions: int) -> dict[int, int]:
        """The last offset that was acknowledged in each of so many partitions, where there is one."""
        found: dict[int, int] = {}
        for entry in self.entries.values():
            if "offset" in entry and entry["partition"] < partitions:
                found[entry["partition"]] = max(found.get(entry["partition"], 0), entry["offset"])
        return found

    def rewind(self, partition: int | None = None, offset: int = 0) -> int:
        """Epochs that stand at or behind an offset of a partition begin anew; None: all of every partition.

        Returns:
            How many.
        """
        count = 0
        for entry in self.entries.values():
            sent = entry["next_seq"] > 0
            if sent and (partition is None or self._stands(entry, partition, offset)):
                entry["next_seq"] = 0
                entry.pop("offset", None)
                count += 1
        if count:
            self.moved()
        return count

    @staticmethod
    def _stands(entry: dict[str, int], partition: int, offset: int) -> bool:
        return entry["partition"] == partition and entry.get("offset", -1) >= offset

    def forget(self, present: Set[str], over: Collection[str]) -> list[str]:
        """Drop epochs that are gone from the spool; returns which.

        The last one of a source stays unless it is `over`: if someone removed the spool, the recorder goes on with it,
        and its records must not come to another partition, behind the backs of readers.
        """
        last = {key[:16]: key for key in sorted(self.entries.keys() | present)}
        gone = [key for key in self.entries if key not in present and (key in over or last[key[:16]] != key)]
        for key in gone:
            del self.entries[key]
        if gone:
            self.moved()
        return gone

    def moved(self) -> None:
        """A position moved; saved now and then."""
        self._dirty = True
        self.save_due()

    def save_due(self) -> None:
        """Save what moved, once the last save is `SAVE_S` ago; also for a forwarder with nothing to send, or
        the last positions of a burst would stay in memory alone."""
        if self._dirty and time.monotonic() - self._saved_s >= SAVE_S:
            self.flush()

    def save(self) -> None:
        """Put the file on disk.

        Raises:
            OSError: the last one stands there, whole.
        """
        replace(DISK, self._path, msgspec.json.encode(self.entries))
        self._saved_s, self._dirty = time.monotonic(), False

    def flush(self) -> None:
        """Save what moved since. A disk that refuses costs doubles after a crash, and stops nothing."""
        if not self._dirty:
            return
        try:
            self.save()
        except OSError as exc:
            self._saved_s = time.monotonic()
            log.warning("positions_not_saved", extra={"why": exc.strerror})
