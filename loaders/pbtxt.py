"""Protobuf's text format, as config.pbtxt files are written in: read into plain dictionaries.

config.pbtxt -> **pbtxt** -> model_config. It knows no schema: every field is a list of its values in the order of the
file, words that are no text in quotes (enums, true, false) are `Word`s, and numbers are numbers.
"""

from __future__ import annotations

import re
from typing import Any

DEPTH_MAX = 32
_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+)
      |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      |(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)[fF]?(?![\w.]))
      |(?P<word>-?[A-Za-z_][\w.]*|\[[\w./-]+\](?=\s*[:{<]))
      |(?P<mark>[{}<>\[\]:;,])""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_CLOSES = {"{": "}", "<": ">"}
Fields = dict[str, list[Any]]


class Word(str):
    """A word without quotes: an enum's value, true or false."""

    __slots__ = ()


def read(source: str) -> Fields:
    """Read a whole file.

    Raises:
        ValueError: "line N: …", what was found and what was expected.
    """
    return _Reader(source).message("", 0)


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._kind, self._token = "", ""
        self._next()

    def message(self, closes: str, depth: int) -> Fields:
        """Fields up to the closing mark."""
        if depth > DEPTH_MAX:
            raise self._wrong(f"is nested more than {DEPTH_MAX} deep")
        found: Fields = {}
        while self._kind != ("mark" if closes else "end") or self._token != closes:
            if self._kind != "word":
                raise self._wrong("expected the name of a field" + (f" or {closes!r}" if closes else ""))
            name = self._take()
            values = found.setdefault(name, [])
            colon = self._token == ":" and self._kind == "mark"
            if colon:
                self._take()
            if self._kind == "mark" and self._token == "[":
                values.extend(self._list(depth))
            elif self._kind == "mark" and self._token in _CLOSES:
                values.append(self._nested(depth))
            elif colon:
                values.append(self._scalar())
            else:
                raise self._wrong(f"expected ':' or '{{' after {name!r}")
            if self._kind == "mark" and self._token in {",", ";"}:
                self._take()
        self._take()
        return found

    def _list(self, depth: int) -> list[Any]:
        self._take()
        values: list[Any] = []
        while not (self._kind == "mark" and self._token == "]"):
            if values:
                if self._token != "," or self._kind != "mark":
                    raise self._wrong("expected ',' or ']'")
                self._take()
            nested = self._kind == "mark" and self._token in _CLOSES
            values.append(self._nested(depth) if nested else self._scalar())
        self._take()
        return values

    def _nested(self, depth: int) -> Fields:
        return self.message(_CLOSES[self._take()], depth + 1)

    def _scalar(self) -> Any:
        if self._kind == "text":
            # Neighbouring texts are one.
            parts = []
            while self._kind == "text":
                parts.append(_unescaped(self._take()[1:-1]))
            return "".join(parts)
        if self._kind == "word":
            return Word(self._take())
        if self._kind == "number":
            digits = self._take()
            if re.fullmatch(r"[-+]?0[xX][0-9a-fA-F]+", digits):
                return int(digits, 16)
            return int(digits) if re.fullmatch(r"[-+]?[0-9]+", digits) else float(digits.rstrip("fF"))
        raise self._wrong("expected a value")

    def _take(self) -> str:
        token = self._token
        self._next()
        return token

    def _next(self) -> None:
        while True:
            if self._at >= len(self._source):
                self._kind, self._token = "end", ""
                return
            match = _TOKEN.match(self._source, self._at)
            if match is None:
                self._kind, self._token = "none", self._source[self._at : self._at + 10]
                raise self._wrong("is no part of the text format")
            self._at = match.end()
            if match.lastgroup != "space":
                self._kind, self._token = str(match.lastgroup), match.group()
                return

    def _wrong(self, what: str) -> ValueError:
        line = self._source.count("\n", 0, self._at) + 1
        found = "the end of the file" if self._kind == "end" else repr(self._token[:40])
        return ValueError(f"line {line}: found {found}: {what}")


def _unescaped(raw: str) -> str:
    def one(match: re.Match[str]) -> str:
        code = match.group(1)
        if code[0] in "xX" and len(code) > 1:
            return chr(int(code[1:], 16))
        if code[0].isdigit():
            return chr(int(code, 8))
        return _ESCAPES.get(code, code)

    return re.sub(r"\\([xX][0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", one, raw)
