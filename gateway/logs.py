"""Diagnostics: one line an event on stderr, JSON unless a person is looking. Standard library only.

No line per request: the audit event is that. What is logged is lifecycle, changes of state, failures.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """`level role event key=value …` for people, one JSON object a line for machines."""

    def __init__(self, role: str, *, as_json: bool) -> None:
        super().__init__()
        self._role = role
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line, also for a traceback."""
        extras = {k: v for k, v in vars(record).items() if k not in _PLAIN and v is not None}
        if record.exc_info:
            extras["exception"] = self.formatException(record.exc_info)
        if self._as_json:
            head = {
                "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
                + f".{int(record.msecs):03d}Z",
                "level": record.levelname.lower(),
                "role": self._role,
                "pid": os.getpid(),
                "event": record.getMessage(),
            }
            return json.dumps({**head, **extras}, default=str)
        shown = " ".join(f"{name}={value}" for name, value in extras.items())
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{stamp} {record.levelname.lower():7} {self._role}: {record.getMessage()} {shown}".rstrip()


def setup(role: str) -> logging.Logger:
    """Send this process's log to stderr; returns the role's logger."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(role, as_json=not sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return logging.getLogger(f"tidegate.{role}")
