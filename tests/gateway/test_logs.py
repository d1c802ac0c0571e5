"""Diagnostics are one line an event, for people or for machines."""

from __future__ import annotations

import json
import logging
import os
import sys

from gateway.logs import LineFormatter


def record(**extras: object) -> logging.LogRecord:
    """An event as code logs it."""
    return logging.getLogger("tidegate.test").makeRecord(
        "tidegate.test", logging.WARNING, "f", 1, "child_died", (), None, extra=extras
    )


def test_json_lines_have_the_head_and_the_extras() -> None:
    """ts, level, role, pid and event stand first; what has no value is left out."""
    line = LineFormatter("supervisor", as_json=True).format(record(child="worker-0", code=-9, why=None))
    read = json.loads(line)
    assert list(read) == ["ts", "level", "role", "pid", "event", "child", "code"]
    assert (read["level"], read["role"], read["event"]) == ("warning", "supervisor", "child_died")
    assert read["pid"] == os.getpid()
    assert read["ts"].endswith("Z")


def test_tracebacks_and_newlines_stay_on_one_line() -> None:
    """An exception is one field of one line."""
    event = record(text="a\nb")
    try:
        raise ValueError("boom")
    except ValueError:
        event.exc_info = sys.exc_info()
    line = LineFormatter("worker-0", as_json=True).format(event)
    assert "\n" not in line
    assert "ValueError: boom" in json.loads(line)["exception"]


def test_console_form() -> None:
    """People read level, role, event and key=value."""
    line = LineFormatter("recorder", as_json=False).format(record(lost=3))
    assert line.endswith("warning recorder: child_died lost=3")
