"""Settling: a version that is still being copied is not loaded yet, and one that was mended may be loaded again.

repository (disk) -> placement -> **settling**. Files are settled when they look the same, by name, size and time, as at
the look before, or when a file `.complete` lies with them, which a copying tool writes last. Looked at are only
directories of versions that are new, or (with models_watch_s) that failed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from loaders.repository import version_directory

COMPLETE = ".complete"
Look = tuple[tuple[str, int, int], ...]
Key = tuple[str, str]


class Settling:
    """What version directories looked like.

    Args:
        models: the repository.

    Threading: one caller at a time. Cost: one stat a file of what is asked about.
    """

    def __init__(self, models: Path) -> None:
        self._models = models
        self._looks: dict[Key, Look] = {}
        self._tried: dict[Key, Look] = {}

    def settled(self, keys: Iterable[Key]) -> set[Key]:
        """Those whose files are whole, as far as one can see."""
        found = set()
        for key in keys:
            look = self._look(key)
            if self._looks.get(key) == look or any(name == COMPLETE for name, _, _ in look):
                found.add(key)
            self._looks[key] = look
        return found

    def mended(self, failed: Iterable[Key]) -> list[Key]:
        """Failed versions whose files are others than when they were asked about first, and settled."""
        keys = list(failed)
        for key in set(self._tried) - set(keys):
            del self._tried[key]
        settled = self.settled(keys)
        out = []
        for key in keys:
            before = self._tried.setdefault(key, self._looks[key])
            if key in settled and self._looks[key] != before:
                self._tried[key] = self._looks[key]
                out.append(key)
        return out

    def forget(self, but: set[Key]) -> None:
        """Keep what is known of these alone."""
        self._looks = {key: look for key, look in self._looks.items() if key in but}

    def _look(self, key: Key) -> Look:
        found = []
        for directory, _, files in os.walk(version_directory(self._models, *key)):
            for name in files:
                try:
                    one = os.stat(os.path.join(directory, name))  # noqa: PTH116, PTH118  many files
                except OSError:
                    continue
                found.append((name, one.st_size, one.st_mtime_ns))
        return tuple(sorted(found))
