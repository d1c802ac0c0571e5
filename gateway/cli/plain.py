"""Texts of others on a terminal: control characters spelt out.

Names, reasons and words of errors come from models, clients and logs. No such text may move the cursor, colour what
follows or pretend to be a line of ours. screen uses it for answers, group for errors.
"""

from __future__ import annotations

import re

_TURNING = r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""Line ends beyond ASCII, and what turns the direction of the text that follows."""
_CONTROL = re.compile(rf"[\x00-\x1f\x7f-\x9f{_TURNING}]")
_CONTROL_BUT_NEWLINE = re.compile(rf"[\x00-\x09\x0b-\x1f\x7f-\x9f{_TURNING}]")


def one_line(text: str) -> str:
    r"""The text with every control character as it is written in code, `\x1b`; newlines too."""
    return _CONTROL.sub(_spelt, text)


def lines(text: str) -> str:
    """The same for a text whose newlines are ours."""
    return _CONTROL_BUT_NEWLINE.sub(_spelt, text)


def _spelt(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
