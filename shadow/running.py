"""What the mirror runs at this moment, in a file that outlives it: the next one knows what it died of. Mirror stage.

    <state_dir>/mirror/running         the requests of the present run, written in place before it
    <state_dir>/mirror/fault           what the process said at a fatal signal
    <state_dir>/mirror/crashes.json    what mirrors died of

A graph can end its process: an integer division is enough. Then the next mirror would die of the same request, and no
shadow of any model would be answered again. So what was run together at a death is run one by one, and what was run
alone is answered as crashed and not run again. Who was killed from outside is no proof: the same request has to be
there twice.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from shadow.resume import write_place

log = logging.getLogger("tidegate.mirror")

CRASHES_MAX = 3
"""A version of which mirrors died so often is not run again while its route is the same."""
KEPT = 1000
_LENGTH_CHARS = 8
Key = tuple[str, str, str]
"""(prediction id, model, version); no id while the version is loaded."""


class Run(msgspec.Struct, frozen=True):
    """What runs: requests of one version, at the newest revision of its route."""

    model: str
    version: str
    revision: int
    ids: list[str]

    @property
    def keys(self) -> list[Key]:
        """One for each request."""
        return [(each, self.model, self.version) for each in self.ids]


class Crash(msgspec.Struct):
    """How often mirrors died of a version, and the revision at which they last did."""

    count: int
    revision: int


class Crashes(msgspec.Struct):
    """What earlier mirrors died of. Plain data."""

    versions: dict[str, Crash] = {}
    """By "model/version"."""
    requests: list[Key] = []
    """Answered as crashed, the latest last."""
    suspects: list[Key] = []
    """Ran alone when a mirror was ended from outside."""


class Running:
    """The file, and what it told at the start.

    Args:
        home: `<state_dir>/mirror`; made where it is not there.
        newest: the newest known revision of a model's route.

    Threading: one thread. Cost: about 10 us a run. Nothing is synced: it is to survive a process, not a host.
    """

    def __init__(self, home: Path, newest: Callable[[str], int]) -> None:
        home.mkdir(mode=0o700, exist_ok=True)
        self._newest = newest
        self._path = home / "crashes.json"
        self._alone: set[Key] = set()
        self._fd = os.open(home / "running", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._fault = (home / "fault").open("a+b")
        self._crashes = self._load()
        self._learn()
        self._crashed = frozenset(self._crashes.requests)

    def watch_faults(self) -> None:
        """From now on a fatal signal is told in the file, before it takes its course."""
        faulthandler.enable(self._fault, all_threads=False)

    def close(self) -> None:
        """Let go of the files."""
        if faulthandler.is_enabled():
            faulthandler.disable()
        os.close(self._fd)
        self._fault.close()

    @contextlib.contextmanager
    def of(self, model: str, version: str, ids: Sequence[str]) -> Iterator[None]:
        """A run, or a load (one empty id): what dies in it is known to the next mirror."""
        content = msgspec.json.encode(Run(model, version, self._newest(model), list(ids)))
        os.pwrite(self._fd, f"{len(content):0{_LENGTH_CHARS}x}".encode() + content, 0)
        try:
            yield
        finally:
            self._clear()
            if self._crashes.suspects:
                self._acquit({(each, model, version) for each in ids})

    def has_crashed(self, key: Key) -> bool:
        """Whether a mirror died of this request: it is answered so, and not run."""
        return key in self._crashed

    def is_alone(self, key: Key) -> bool:
        """Whether a request is run by itself: it was under way at a death."""
        return key in self._alone

    def is_out(self, model: str, version: str) -> bool:
        """Whether a version is not run any more: mirrors died of it, and its route did not change since."""
        crash = self._crashes.versions.get(f"{model}/{version}")
        return crash is not None and crash.count >= CRASHES_MAX and self._newest(model) <= crash.revision

    def _acquit(self, keys: set[Key]) -> None:
        """It came to its end: whoever was killed in it before was killed by another."""
        left = [key for key in self._crashes.suspects if key not in keys]
        if len(left) != len(self._crashes.suspects):
            self._crashes.suspects = left
            write_place(self._path, msgspec.json.encode(self._crashes))

    def _load(self) -> Crashes:
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            return msgspec.json.decode(self._path.read_bytes(), type=Crashes)
        return Crashes()

    def _learn(self) -> None:
        """Take up how the last mirror ended."""
        self._fault.seek(0)
        said = self._fault.read().decode(errors="replace").splitlines()
        run = self._read()
        if run is not None:
            self._note(run, said)
            write_place(self._path, msgspec.json.encode(self._crashes))
        self._clear()
        self._fault.truncate(0)

    def _note(self, run: Run, said: list[str]) -> None:
        known = self._crashes
        alone = run.keys[0] if len(run.keys) == 1 else None
        is_crash = bool(said) or alone in known.suspects
        if alone is None or not is_crash:
            self._alone.update(run.keys)
        if alone is not None:
            noted = known.requests if is_crash else known.suspects
            noted.append(alone)
            del noted[:-KEPT]
        if is_crash:
            crash = known.versions.get(f"{run.model}/{run.version}")
            count = crash.count if crash is not None and crash.revision >= run.revision else 0
            known.versions[f"{run.model}/{run.version}"] = Crash(count + 1, run.revision)
        facts = {"model": run.model, "version": run.version, "requests": len(run.ids), "is_crash": is_crash}
        log.error("mirror_died_in_a_run", extra={**facts, "said": said[:1]})

    def _read(self) -> Run | None:
        content = os.pread(self._fd, 1 << 20, 0)
        try:
            length = int(content[:_LENGTH_CHARS], 16)
            return msgspec.json.decode(content[_LENGTH_CHARS : _LENGTH_CHARS + length], type=Run)
        except (ValueError, msgspec.MsgspecError):
            # Empty, or cleared: nothing ran.
            return None

    def _clear(self) -> None:
        os.pwrite(self._fd, b"0" * _LENGTH_CHARS, 0)
