"""Log lines hold whatever texts they are given: one line, valid JSON, no end of repeats."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.logs import ALIKE, ALIKE_S, KIND, KIND_S, TEXT_CHARS, LineFormatter, Repeats


def record(event: str = "failed", level: int = logging.ERROR, /, **extras: Any) -> logging.LogRecord:
    """An event as code logs it."""
    return logging.getLogger("tidegate.test").makeRecord(
        "tidegate.test", level, "f", 1, event, (), None, extra=extras
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def refuse(constant: str) -> None:
    """JSON has no such number."""
    raise AssertionError(constant)


@given(st.text(), VALUES)
def test_any_text_and_value_is_one_valid_line(event: str, value: Any) -> None:
    """For machines ASCII that every JSON parser reads; for people no control character."""
    line = LineFormatter("worker-0", as_json=True).format(record(event, why=value))
    assert line.isascii()
    assert len(line.splitlines()) == 1
    read = json.loads(line, parse_constant=refuse)
    read["event"].encode()
    assert read["role"] == "worker-0"
    plain = LineFormatter("worker-0", as_json=False).format(record(event, why=value))
    assert len(plain.splitlines()) == 1
    assert all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in plain)


@pytest.mark.parametrize("text", ["a\r\nb", "\x1b[31m", "x\u2028y", "\udc80", "é", '"}{', "\0"])
def test_names_of_others(text: str) -> None:
    """A model's or client's name can neither end the line nor colour it."""
    read = json.loads(LineFormatter("control", as_json=True).format(record(model=text)))
    assert read["model"] == text.replace("\udc80", "\\udc80")


def test_extras_do_not_take_the_head() -> None:
    """Who logs an extra called event or level cannot pretend to be another event."""
    read = json.loads(
        LineFormatter("control", as_json=True).format(record("failed", event="fine", level="info"))
    )
    assert (read["event"], read["event_"], read["level"], read["level_"]) == (
        "failed",
        "fine",
        "error",
        "info",
    )


class Mute:
    """A value without a text."""

    def __str__(self) -> str:
        raise RuntimeError


def test_what_cannot_be_told_is_still_a_line() -> None:
    """A value whose text cannot be made, arguments that do not fit."""
    line = LineFormatter("control", as_json=True).format(record(what=Mute()))
    assert json.loads(line)["event"] == "line_not_made"
    wrong = logging.LogRecord("x", logging.ERROR, "f", 1, "%d of %d", ("one",), None)
    assert json.loads(LineFormatter("control", as_json=True).format(wrong))["event"] == "%d of %d"


def test_long_texts_are_cut() -> None:
    """A text of a megabyte is shown in part; of a traceback the end, which says what happened."""
    event = record(text="x" * 1_000_000)
    try:
        raise ValueError("y" * 100_000 + "the end")
    except ValueError:
        event.exc_info = sys.exc_info()
    read = json.loads(LineFormatter("control", as_json=True).format(event))
    assert len(read["text"]) == len(read["exception"]) == TEXT_CHARS
    assert read["exception"].endswith("the end")


class Clock:
    """Time as the test sets it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_what_repeats_is_told_a_few_times_then_with_its_number() -> None:
    """Equal errors pass ALIKE times a minute; the first one afterwards says how many did not."""
    clock = Clock()
    repeats = Repeats(clock)
    passed = 0
    for tenth in range(100):
        clock.now_s = tenth / 10
        passed += repeats.filter(record(why="disk full"))
    assert passed == ALIKE
    clock.now_s = ALIKE_S
    later = record(why="disk full")
    assert repeats.filter(later)
    assert later.__dict__["left_out"] == 100 - ALIKE
    after = record(why="disk full")
    assert repeats.filter(after)
    assert "left_out" not in after.__dict__


def test_one_kind_of_error_never_floods() -> None:
    """Errors that each say something else (an id in the text) are bounded too; other events are not held up."""
    clock = Clock()
    repeats = Repeats(clock)
    passed = sum(repeats.filter(record("reply_not_made", model=f"m{number}")) for number in range(5000))
    assert passed == KIND
    assert repeats.filter(record("child_died"))
    clock.now_s = KIND_S
    later = record("reply_not_made", model="again")
    assert repeats.filter(later)
    assert later.__dict__["left_out"] == 5000 - KIND


def test_lifecycle_is_never_left_out() -> None:
    """What is no warning passes, however often."""
    repeats = Repeats(Clock())
    assert all(repeats.filter(record("version_loaded", logging.INFO, model="m")) for _ in range(1000))
