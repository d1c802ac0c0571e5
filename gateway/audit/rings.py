"""Rings: finds those of this gateway as they come, each ready to be drained. Between the owners and the recorder.

What cannot be drained is dealt with here: a file that is no ring is put aside, a ring whose epoch is closed is removed,
and of one that another boot left only what the disk lacks is taken (`salvage`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from gateway.audit.drain import Drain, Target
from gateway.audit.salvage import salvage
from gateway.audit.spool import closed, epoch_path
from gateway.errors import RingUnusable

log = logging.getLogger("tidegate.recorder")

MTIME_GRAIN_NS = 50_000_000
"""The ring directory's mtime is trusted once it is older than the clock's grain."""
_NAME_CHARS = 25


class Rings:
    """Looks for new rings. Used by the one thread of the recorder.

    Attributes:
        ringless: there may be epochs whose ring is gone; who has closed them clears it.
    """

    def __init__(self, directory: Path, target: Target) -> None:
        self._directory = directory
        self._target = target
        self._listed_ns = 0
        self.ringless = True

    def new(self, known: Collection[str]) -> Iterator[Drain]:
        """Rings that came since, each once. Cost: one stat where nothing did.

        Args:
            known: names of those that are drained already.

        Raises:
            OSError: one cannot be opened; those before it were yielded, and the next call tries again.
        """
        changed_ns = self._directory.stat().st_mtime_ns
        if changed_ns == self._listed_ns and time.time_ns() - changed_ns > MTIME_GRAIN_NS:
            return
        self._listed_ns = 0
        for path in self._directory.iterdir():
            name = path.name
            if name not in known and len(name) == _NAME_CHARS and name[16] == "-":
                drain = self._open(path)
                if drain is not None:
                    yield drain
        self._listed_ns = changed_ns

    def _open(self, path: Path) -> Drain | None:
        storage = self._target.storage
        try:
            drain = Drain(path, self._target)
        except FileNotFoundError:
            return None
        except RingUnusable as exc:
            storage.rename(path, path.with_suffix(".bad"))
            log.error("ring_unusable", extra={"ring": path.name, "why": str(exc)})  # noqa: TRY400
            self._lose(path.name)
            return None
        try:
            if closed(drain.epoch, storage) is None:
                if drain.believed:
                    return drain
                kept = salvage(drain.ring, drain.epoch, self._target.segment_bytes, storage)
                log.warning("ring_of_another_boot", extra={"ring": path.name, **kept._asdict()})
                self.ringless = True
        except OSError:
            drain.close()
            raise
        drain.close(unlink=True)
        return None

    def _lose(self, name: str) -> None:
        """The epoch of a ring that cannot be read is told like one whose ring is gone."""
        try:
            source, epoch = (int(part, 16) for part in name.split("-"))
        except ValueError:
            return
        self._target.storage.make_directory(epoch_path(self._target.spool, source, epoch).path)
        self.ringless = True
