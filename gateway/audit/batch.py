"""Batches: records in columns as one Kafka RecordBatch (format 2), the bytes that go over the wire.

values, envelope -> **batch** -> producer. A client library's builder takes a record at a time, which costs more than
all that is said in it; here everything of a record that others share is made once, and a batch is one join. The law,
held by a property test: before compression the same bytes as aiokafka's own builder makes. `RecordBatch` has the
methods that aiokafka's accumulator and sender call of a builder; tests/kafka/test_relied_on.py holds those.

Format: KIP-98 and KIP-82, as in Kafka's documentation ("Record Batch", "Record").
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import cramjam
from aiokafka.record.util import calc_crc32c

ZSTD_LEVEL = 1
"""Of these records level 1 makes less than level 3, in half the time."""
KEY_BYTES = 42
"""An event's id."""
RECORD_BYTES = 320
"""About what a record takes beside its value."""
HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES = HEADER.size
_MAGIC, _ZSTD = 2, 4
_LENGTH_FROM, _CRC_AT, _CRC_FROM = 12, 17, 21
_KEPT = 1 << 16


def varint(value: int) -> bytes:
    """Zigzag variable length, as in protocol buffers: all integers of a record."""
    value = value * 2 if value >= 0 else -2 * value - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Varints(dict[int, bytes]):
    """`varint` of numbers between two texts, each made once."""

    def __init__(self, before: bytes = b"", after: bytes = b"") -> None:
        self._around = (before, after)

    def __missing__(self, value: int) -> bytes:
        made = varint(value).join(self._around)
        if len(self) < _KEPT:
            self[value] = made
        return made


_VARINTS = _Varints()
_STAMPS = _Varints(before=b"\0")
"""No attributes; how much later than the batch's first record."""
_PLACES = _Varints(after=varint(KEY_BYTES))
"""Which record of the batch; how long its key is."""


class Head(NamedTuple):
    """A record's headers as they stand behind its value, but for the id, which is its key."""

    before: bytes
    after: bytes
    size_bytes: int
    """With the id."""


def head_of(before: Sequence[tuple[str, bytes]], after: Sequence[tuple[str, bytes]]) -> Head:
    """The headers of a record: some, the id as `ce_id`, and others."""
    name = b"ce_id"
    first = varint(len(before) + 1 + len(after)) + b"".join(map(_header, before))
    first += varint(len(name)) + name + varint(KEY_BYTES)
    last = b"".join(map(_header, after))
    return Head(first, last, len(first) + KEY_BYTES + len(last))


def _header(pair: tuple[str, bytes]) -> bytes:
    name, value = pair[0].encode(), pair[1]
    return varint(len(name)) + name + varint(len(value)) + value


class Parcel(NamedTuple):
    """Records in columns, in order."""

    next_seqs: Sequence[int]
    """The number to go on with behind each."""
    keys: Sequence[bytes]
    values: Sequence[bytes]
    times_ms: Sequence[int]
    heads: Sequence[Head]

    def after(self, seq: int) -> Parcel:
        """Those whose next number is above `seq`."""
        if self.next_seqs[0] > seq:
            return self
        first = next((i for i, one in enumerate(self.next_seqs) if one > seq), len(self.next_seqs))
        return Parcel(
            self.next_seqs[first:],
            self.keys[first:],
            self.values[first:],
            self.times_ms[first:],
            self.heads[first:],
        )


class Pending:
    """Records that wait to be sent, in order.

    Attributes:
        size_bytes: about what they take.
    """

    def __init__(self) -> None:
        self._columns: tuple[list, ...] = ([], [], [], [], [])  # type: ignore[type-arg]
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._columns[0])

    @property
    def first_ms(self) -> int:
        """The first record's time."""
        return self._columns[3][0]  # type: ignore[no-any-return]

    @property
    def first_bytes(self) -> int:
        """The first record's value takes."""
        return len(self._columns[2][0])

    def add(self, parcel: Parcel) -> None:
        """Behind what waits already."""
        for mine, more in zip(self._columns, parcel, strict=True):
            mine.extend(more)
        self.size_bytes += _size(parcel.values)

    def batch(self, limit_bytes: int) -> RecordBatch:
        """As many from the front as a batch takes, one at least; they go on waiting until dropped."""
        next_seqs, keys, values, times_ms, heads = self._columns
        parts: list[bytes] = []
        size_bytes, count = HEADER_BYTES, 0
        base_ms = times_ms[0]
        for key, value, at_ms, (before, after, head_bytes) in zip(keys, values, times_ms, heads, strict=True):
            stamp, place = _STAMPS[at_ms - base_ms], _PLACES[count]
            value_bytes = len(value)
            width = _VARINTS[value_bytes]
            length = len(stamp) + len(place) + KEY_BYTES + len(width) + value_bytes + head_bytes
            mark = _VARINTS[length]
            size_bytes += len(mark) + length
            if size_bytes > limit_bytes and count:
                break
            parts += (mark, stamp, place, key, width, value, before, key, after)
            count += 1
        return RecordBatch(parts, count, base_ms, max(times_ms[:count]), next_seqs[count - 1])

    def drop(self, count: int) -> None:
        """The first so many are sent."""
        self.size_bytes -= _size(self._columns[2][:count])
        for column in self._columns:
            del column[:count]


def _size(values: Sequence[bytes]) -> int:
    return sum(map(len, values)) + RECORD_BYTES * len(values)


class RecordBatch:
    """A batch on its way; to aiokafka it is a builder that is closed.

    Attributes:
        count: records in it.
        next_seq: the number to go on with behind the last.
    """

    def __init__(self, parts: list[bytes], count: int, base_ms: int, newest_ms: int, next_seq: int) -> None:
        self.count = count
        self.next_seq = next_seq
        self._parts = parts
        self._times_ms = (base_ms, newest_ms)
        self._state = (-1, -1, 0)
        self._buffer: bytes | None = None

    def record_count(self) -> int:
        """Records in it."""
        return self.count

    def closed(self) -> bool:
        """Nothing is added."""
        return True

    def close(self) -> None:
        """It is."""

    def size(self) -> int:
        """Bytes on the wire, or before compression where it was not built."""
        return HEADER_BYTES + sum(map(len, self._parts)) if self._buffer is None else len(self._buffer)

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        """The sender's, before it builds."""
        self._state = (producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytes:
        """The sender's: the bytes, the same each time."""
        if self._buffer is None:
            body = b"".join(self._parts)
            packed = cramjam.zstd.compress(body, level=ZSTD_LEVEL)
            self._buffer = self.sealed(bytes(packed), _ZSTD) if len(packed) < len(body) else self.plain()
            self._parts = []
        return self._buffer

    def plain(self) -> bytes:
        """The bytes without compression; before it is built."""
        return self.sealed(b"".join(self._parts), 0)

    def sealed(self, body: bytes, attributes: int) -> bytes:
        """Header, checksum and body."""
        header = bytearray(HEADER_BYTES)
        length = HEADER_BYTES + len(body) - _LENGTH_FROM
        HEADER.pack_into(
            header, 0, 0, length, -1, _MAGIC, 0, attributes, self.count - 1, *self._times_ms, *self._state,
            self.count,
        )  # fmt: skip
        whole = header + body
        struct.pack_into(">I", whole, _CRC_AT, calc_crc32c(memoryview(whole)[_CRC_FROM:]))
        return bytes(whole)
