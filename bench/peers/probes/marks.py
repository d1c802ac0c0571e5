"""Marks: requests that can be found again in whatever a product wrote about them. Pure.

Request number n holds the values 100,000 + n and 200,000 + n side by side. Both are whole, fit into FP32 and need six
digits, so that a log holds them as text or as raw floats, whatever its format is; no code of a product is needed to
read them. The model `scale` multiplies by its version + 2: outputs are marks, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARKS = 10_000
_FIRST, _SECOND = 100_000, 200_000
_NEAR_BYTES = 80
"""From one value's text to the next's: a name and punctuation."""
_BETWEEN_BYTES = 16
"""From one raw float to the next, at most: lists of some formats have a tag before each value."""
_WHOLE = re.compile(rb"(?<![\d.eE])(\d{6})(?:\.0*)?(?![\d.eE])")
_SKIPPED_SUFFIXES = {".onnx", ".so", ".py"}
_FILE_BYTES_MAX = 1 << 30


def marked(numbers: Iterable[int]) -> NDArray[np.float32]:
    """Rows of `scale`'s input X [N,4], one for each number below MARKS."""
    rows = [[_FIRST + number, _SECOND + number, 0.5, -0.25] for number in numbers]
    return np.array(rows, np.float32)


def found(raw: bytes, times: int = 1) -> list[int]:
    """Numbers of the marks in a text or in binary data, one for each time that they stand there.

    Args:
        times: what the values were multiplied by; 1 finds inputs.
    """
    return _in_text(raw, times) or _in_floats(raw, times)


def found_below(directory: Path, times: int = 1) -> dict[Path, list[int]]:
    """Marks in the files below a directory, models and code left out; files without any are left out, too."""
    hits: dict[Path, list[int]] = {}
    for path in sorted(directory.rglob("*")):
        try:
            # A sparse file of a fixed size counts by what it holds.
            stat = path.stat()
            if path.is_symlink() or not path.is_file() or path.suffix in _SKIPPED_SUFFIXES:
                continue
            if min(stat.st_size, stat.st_blocks * 512 + 4096) > _FILE_BYTES_MAX:
                continue
            numbers = found(path.read_bytes(), times)
        except OSError:
            continue
        if numbers:
            hits[path] = numbers
    return hits


def _in_text(raw: bytes, times: int) -> list[int]:
    numbers: list[int] = []
    last_value, last_end = -1, 0
    for match in _WHOLE.finditer(raw):
        value = int(match[1])
        number = _number(last_value, value, times)
        if number is not None and match.start() - last_end <= _NEAR_BYTES:
            numbers.append(number)
        last_value, last_end = value, match.end()
    return numbers


def _number(first: int, second: int, times: int) -> int | None:
    number, rest = divmod(first - _FIRST * times, times)
    is_mark = not rest and 0 <= number < MARKS and second == (_SECOND + number) * times
    return number if is_mark else None


def _in_floats(raw: bytes, times: int) -> list[int]:
    numbers: list[int] = []
    for dtype, size in (("<f4", 4), ("<f8", 8)):
        firsts: list[tuple[int, int]] = []
        seconds: dict[int, int] = {}
        for offset in range(min(size, len(raw))):
            values = np.frombuffer(raw, dtype, (len(raw) - offset) // size, offset)
            firsts += _placed(values, _FIRST, times, offset, size)
            seconds.update(_placed(values, _SECOND, times, offset, size))
        numbers += [
            number
            for at, number in firsts
            if any(seconds.get(at + size + between) == number for between in range(_BETWEEN_BYTES + 1))
        ]
    return numbers


def _placed(values: NDArray[Any], base: int, times: int, offset: int, size: int) -> list[tuple[int, int]]:
    """Where values of marks stand, and their numbers."""
    with np.errstate(all="ignore"):
        at = np.flatnonzero((values >= base * times) & (values < (base + MARKS) * times))
    found_here = []
    for i in at:
        number, rest = divmod(float(values[i]) - base * times, times)
        if not rest and number == int(number):
            found_here.append((offset + int(i) * size, int(number)))
    return found_here
