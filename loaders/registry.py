"""The registry: which versions are loaded, in what state, and why. Last step of loading.

States: loading -> ready | failed; ready -> draining -> unloaded. One loader thread does all loading, one
version after another, so that loading costs serving one core at most. A session is let go only by dropping
the reference: a run that still holds it finishes. A version whose files could not be read at the moment is
failed, with the reason, and tried again by itself; what is wrong with a model's content waits for someone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from loaders.errors import ModelError
from loaders.session import Session

LOADING, READY, DRAINING, UNLOADED, FAILED = "loading", "ready", "draining", "unloaded", "failed"

Key = tuple[str, str]
Load = Callable[[str, str], Session]
OnChange = Callable[[str, str, str, str | None], None]

RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits before an unreadable version is tried again; the last one repeats."""
REASON_CHARS = 2000
"""Longer reasons are cut."""


class Registry:
    """Loads what is wanted, drops what is not.

    Args:
        load: makes a session; runs on the loader thread.
        on_change: told (model, version, state, reason); called on the loader thread.
        retry_s: as `RETRY_S`.

    Threading: `want`, `retry`, `get` from any thread, none of them blocks.
    """

    def __init__(self, load: Load, on_change: OnChange, retry_s: Sequence[float] = RETRY_S) -> None:
        self._load = load
        self._on_change = on_change
        self._sessions: dict[Key, Session] = {}
        self._states: dict[Key, tuple[str, str | None]] = {}
        self._wanted: frozenset[Key] = frozenset()
        self._left: set[Key] = set()
        """What left the set, and the loader has not seen since."""
        self._anew: set[Key] = set()
        """Ready versions that someone wants loaded again."""
        self._retry_s = retry_s
        self._again: dict[Key, tuple[int, float]] = {}
        """Unreadable versions: how often they were tried, and when they are next. The loader's alone."""
        self._closing = False
        self._work: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def want(self, desired: Iterable[Key]) -> None:
        """Make this the set of loaded versions; failed ones stay failed until they leave the set."""
        before, self._wanted = self._wanted, frozenset(desired)
        # It may be wanted again before the loader gets to it; who asked then waits to be told anew.
        self._left |= before - self._wanted
        for key in sorted(before ^ self._wanted, key=lambda k: (k[0], int(k[1]))):
            self._work.put(key)

    def retry(self, model: str, version: str) -> None:
        """Load a failed version again, or one that is ready anew.

        The latter is swapped once the new session is ready, and stays as it is, with the reason, when there is none.
        """
        key = (model, version)
        state = self._states.get(key, ("", None))[0]
        if state == FAILED:
            self._states.pop(key)
            self._work.put(key)
        elif state == READY:
            self._anew.add(key)
            self._work.put(key)

    def get(self, model: str, version: str) -> Session | None:
        """A session that is ready."""
        return self._sessions.get((model, version))

    def states(self) -> dict[Key, tuple[str, str | None]]:
        """State and reason of every version that was ever wanted."""
        return dict(self._states)

    def close(self) -> None:
        """End the loader thread after the version it is at."""
        self._closing = True
        self._work.put(None)

    def _run(self) -> None:
        while (key := self._next()) is not None and not self._closing:
            back = key in self._left
            self._left.discard(key)
            if key in self._wanted:
                if key in self._sessions:
                    if key in self._anew:
                        self._anew.discard(key)
                        self._load_anew(key)
                    elif back:
                        self._set(key, READY, None)
                elif back or self._states.get(key, ("", None))[0] != FAILED:
                    self._set(key, LOADING, None)
                    self._load_one(key)
                elif key in self._again and self._again[key][1] <= time.monotonic():
                    self._load_one(key)
            elif key in self._sessions:
                self._set(key, DRAINING, None)
                del self._sessions[key]
                self._set(key, UNLOADED, None)
            else:
                self._states.pop(key, None)
                self._again.pop(key, None)

    def _next(self) -> Key | None:
        """The next version to look at: one that was put in, or one whose wait is over."""
        if not self._again:
            return self._work.get()
        key = min(self._again, key=lambda k: self._again[k][1])
        try:
            return self._work.get(timeout=max(self._again[key][1] - time.monotonic(), 0))
        except queue.Empty:
            return key

    def _load_one(self, key: Key) -> None:
        tries, _ = self._again.pop(key, (0, 0.0))
        try:
            session = self._load(*key)
        except ModelError as exc:
            reason = str(exc)
            if exc.retryable:
                wait_s = self._retry_s[min(tries, len(self._retry_s) - 1)]
                self._again[key] = (tries + 1, time.monotonic() + wait_s)
                reason += "; it is tried again by itself"
            self._fail(key, reason)
            return
        except Exception as exc:  # noqa: BLE001  one bad model must not stop the loader
            # Texts of foreign errors may hold paths, and this one reaches clients.
            self._fail(key, f"it cannot be loaded: {type(exc).__name__}")
            return
        self._sessions[key] = session
        self._set(key, READY, None)

    def _load_anew(self, key: Key) -> None:
        try:
            self._sessions[key] = self._load(*key)
        except Exception as exc:  # noqa: BLE001  what is loaded stays, whatever is wrong with the new
            why = str(exc) if isinstance(exc, ModelError) else type(exc).__name__
            self._set(key, READY, f"it stays as it was loaded: {_told(why)}")
            return
        self._set(key, READY, None)

    def _fail(self, key: Key, reason: str) -> None:
        """Told once: not each time that it is tried again in vain."""
        reason = _told(reason)
        if self._states.get(key) != (FAILED, reason):
            self._set(key, FAILED, reason)

    def _set(self, key: Key, state: str, reason: str | None) -> None:
        self._states[key] = (state, reason)
        self._on_change(*key, state, reason)


def _told(reason: str) -> str:
    """A reason as it is sent to every client that asks: it may quote files of strangers, whose names need not be text
    and whose words have no end."""
    return reason[:REASON_CHARS].encode(errors="backslashreplace").decode()
