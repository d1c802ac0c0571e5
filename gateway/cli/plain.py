"""Texts of others on a terminal: control characters spelt out.

Names, reasons and words of errors come from models, clients and logs. No such text may move the cursor, colour what
follows or pretend to be a line of ours. screen uses it for answers, group for errors.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_BUT_NEWLINE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def one_line(text: str) -> str:
    r"""The text with every control character as it is written in code, `\x1b`; newlines too."""
    return _CONTROL.sub(_spelt, text)


def lines(text: str) -> str:
    """The same for a text whose newlines are ours."""
    return _CONTROL_BUT_NEWLINE.sub(_spelt, text)


def _spelt(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"
