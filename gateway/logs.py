"""Diagnostics: one line an event on stderr, JSON unless a person is looking. Standard library only.

No line per request: the audit event is that. What is logged is lifecycle, changes of state, failures. Whatever texts
of others an event holds (names, reasons, errors of clients and models), a line is one line, and valid JSON; what
fails again and again is logged a few times, and later with how often.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_HEAD = ("ts", "level", "role", "pid", "event")
TEXT_CHARS = 4000
"""What one text of an event shows at most; of a traceback its end."""
ALIKE = 3
"""Warnings and errors that are equal in all they say are logged so often in ALIKE_S."""
ALIKE_S = 60.0
KIND = 100
"""Those of one event, whatever they say, so often in KIND_S."""
KIND_S = 10.0
_KEPT = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class LineFormatter(logging.Formatter):
    """`level role event key=value …` for people, one JSON object a line for machines."""

    def __init__(self, role: str, *, as_json: bool) -> None:
        super().__init__()
        self._role = role
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line, also for a traceback; never raises."""
        extras = _extras(record)
        if record.exc_info and record.exc_info[0] is not None:
            extras["exception"] = self.formatException(record.exc_info)[-TEXT_CHARS:]
        try:
            event = record.getMessage()
        except Exception:  # noqa: BLE001  a message with other arguments than it takes
            event = str(record.msg)
        if self._as_json:
            head = {
                "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
                + f".{int(record.msecs):03d}Z",
                "level": record.levelname.lower(),
                "role": self._role,
                "pid": os.getpid(),
                "event": event[:TEXT_CHARS],
            }
            # An extra that has a name of the head's stands beside it.
            named = {f"{name}_" if name in _HEAD else name: value for name, value in extras.items()}
            return _as_json({**head, **named})
        shown = " ".join(f"{name}={_spelt(value)}" for name, value in extras.items())
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{stamp} {record.levelname.lower():7} {self._role}: {_spelt(event)} {shown}".rstrip()


class Repeats(logging.Filter):
    """Lets a warning or error through a few times; one that goes on comes again with `left_out`, how often it was not.

    Threading: any thread. Memory: some hundred kinds of events.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._alike: dict[object, list[float]] = {}
        self._kinds: dict[object, list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.levelno < logging.WARNING:
            return True
        kind = (record.name, str(record.msg))
        error = record.exc_info[1] if record.exc_info else None
        alike = (*kind, str(record.args), _as_json(_extras(record)), type(error), str(error)[:TEXT_CHARS])
        with self._lock:
            left_out = self._passes(self._alike, alike, ALIKE, ALIKE_S)
            if left_out is None:
                return False
            of_kind = self._passes(self._kinds, kind, KIND, KIND_S)
            if of_kind is None:
                return False
        if left_out or of_kind:
            record.left_out = max(left_out, of_kind)
        return True

    def _passes(self, seen: dict[object, list[float]], key: object, most: int, within_s: float) -> int | None:
        """None: too many of late; else how many were left out before."""
        now_s = self._clock_s()
        if len(seen) > _KEPT:
            seen.clear()
        started_s, passed, left_out = seen.get(key) or (now_s, 0, 0)
        if now_s - started_s >= within_s:
            seen[key] = [now_s, 1, 0]
            return int(left_out)
        if passed < most:
            seen[key] = [started_s, passed + 1, 0]
            return 0
        seen[key] = [started_s, passed, left_out + 1]
        return None


def setup(role: str) -> logging.Logger:
    """Send this process's log, its warnings and what ends it to stderr; returns the role's logger."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(role, as_json=not sys.stderr.isatty()))
    handler.addFilter(Repeats())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # A line that stderr does not take (a full disk) is lost; a traceback about it would not find room either.
    logging.raiseExceptions = False
    log = logging.getLogger(f"tidegate.{role}")

    def ended(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
        log.critical("ended_by_an_error", exc_info=(kind, exc, trace))

    sys.excepthook = ended
    return log


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {k: v for k, v in vars(record).items() if k not in _PLAIN and v is not None}


def _as_json(content: Any) -> str:
    try:
        return json.dumps(_json_value(content, 0), allow_nan=False)
    except Exception:  # noqa: BLE001  a value whose text cannot be made
        return json.dumps({"event": "line_not_made", "keys": sorted(map(repr, content))})


def _json_value(value: Any, depth: int) -> Any:
    """A value that JSON has, of texts that are Unicode; what nests too deep or is of another kind is its text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < 4 and isinstance(value, dict):
        return {_text(name): _json_value(one, depth + 1) for name, one in value.items()}
    if depth < 4 and isinstance(value, list | tuple | set | frozenset):
        return [_json_value(one, depth + 1) for one in value]
    return _text(value)


def _text(value: object) -> str:
    return str(value)[:TEXT_CHARS].encode("utf-8", "backslashreplace").decode()


def _spelt(value: object) -> str:
    """For a terminal: control characters as they are written in code."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), _text(value))
