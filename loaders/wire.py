"""Protobuf's wire format, read and written by hand: ONNX files are looked into before anything else opens them.

Not a step of loading: `graph` (what a file says), and `canonical` (what it says, in one order) stand on it.
"""

from __future__ import annotations

from collections.abc import Iterator

Value = int | memoryview
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Number, wire type and value of a message's fields: an int, or a view on the bytes.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = varint(message, at)
        wire = key & 7
        if wire == VARINT:
            value, at = varint(message, at)
            yield key >> 3, wire, value
            continue
        if wire == BYTES:
            size, at = varint(message, at)
        elif wire in {FIXED64, FIXED32}:
            size = 8 if wire == FIXED64 else 4
        else:
            msg = f"not an ONNX file: wire type {wire}"
            raise ValueError(msg)
        if at + size > end:
            msg = "not an ONNX file: a field runs past its message; was it copied whole?"
            raise ValueError(msg)
        yield key >> 3, wire, message[at : at + size]
        at += size


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where the next field starts.

    Raises:
        ValueError: it does not end.
    """
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            msg = "not an ONNX file: a number does not end"
            raise ValueError(msg)
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7


def packed(value: Value) -> Iterator[int]:
    """Numbers of a repeated field, packed or one at a time; signed, 64 bits."""
    if isinstance(value, int):
        yield signed(value)
        return
    at = 0
    while at < len(value):
        number, at = varint(value, at)
        yield signed(number)


def signed(number: int) -> int:
    """A varint as int64."""
    return number - (1 << 64) if number >= 1 << 63 else number


def text(value: Value) -> str:
    """A text field; bytes that are no UTF-8 are replaced."""
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", "replace")


def encoded(number: int, value: int | bytes) -> bytes:
    """One field, written: a number as varint, bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def spans(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Where a message's fields are: number, start, start of the value's bytes, end.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    at = 0
    for number, wire, value in fields(message):
        start = at
        _, at = varint(message, at)
        if wire == VARINT:
            _, at = varint(message, at)
            yield number, start, start, at
            continue
        if wire == BYTES:
            _, at = varint(message, at)
        size = len(value) if isinstance(value, memoryview) else 0
        yield number, start, at, at + size
        at += size
