"""Batches: our bytes are those of a client library's builder, and a broker's reader finds every record in them."""

from __future__ import annotations

from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit.batch import HEADER_BYTES, KEY_BYTES, Head, Parcel, Pending, RecordBatch, head_of, varint

NAMES = st.text(min_size=1, max_size=140)
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=200)), max_size=3)
RECORDS = st.lists(
    st.tuples(
        st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES),
        st.one_of(st.binary(max_size=300), st.integers(8000, 9000).map(bytes)),
        st.integers(0, 2**43),
        HEADERS,
        HEADERS,
    ),
    min_size=1,
    max_size=70,
)


def pending_of(records: list[Any]) -> Pending:
    """Records that wait, numbered from 0."""
    pending = Pending()
    keys, values, times_ms, before, after = zip(*records, strict=True)
    heads: list[Head] = [head_of(*pair) for pair in zip(before, after, strict=True)]
    pending.add(Parcel(range(1, len(records) + 1), keys, values, times_ms, heads))
    return pending


def built(records: list[Any], limit_bytes: int, state: tuple[int, int, int]) -> tuple[bytes, int]:
    """What aiokafka makes of the same, and how many records it took."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, *state, limit_bytes)
    count = 0
    for key, value, at_ms, before, after in records:
        headers = [*before, ("ce_id", key), *after]
        if builder.append(count, at_ms, key, value, headers) is None:
            break
        count += 1
    return bytes(builder.build()), count


def read(batch: RecordBatch) -> list[Any]:
    """Its records, as a consumer of aiokafka reads them."""
    records = MemoryRecords(batch._build()).next_batch()
    assert records.validate_crc()
    return list(records)


@settings(deadline=None, max_examples=150)
@given(RECORDS, st.integers(100, 20_000), st.integers(-1, 2**40), st.integers(0, 2**31 - 1))
def test_the_bytes_are_those_of_the_librarys_builder(records, limit_bytes, producer_id, sequence):
    """Before compression byte for byte, and as many records as the limit takes: the library, which counts times before
    the first a byte too wide, takes one less at times."""
    batch = pending_of(records).batch(limit_bytes)
    batch._set_producer_state(producer_id, 3, sequence)
    _, count = built(records, limit_bytes, (producer_id, 3, sequence))
    assert batch.count == batch.next_seq >= count
    assert batch.size() <= limit_bytes or batch.count == 1
    expected, count = built(records[: batch.count], 2**31 - 1, (producer_id, 3, sequence))
    assert count == batch.count
    assert batch.plain() == expected
    assert batch.size() == len(expected)


@settings(deadline=None, max_examples=50)
@given(RECORDS)
def test_a_compressed_batch_reads_back(records):
    """What is sent holds every record whole, in order, and is built once."""
    batch = pending_of(records).batch(1 << 20)
    found = read(batch)
    assert [(r.key, r.value, r.timestamp) for r in found] == [record[:3] for record in records]
    assert [list(r.headers) for r in found] == [
        [*before, ("ce_id", key), *after] for key, _, _, before, after in records
    ]
    assert batch._build() is batch._build()


def test_what_does_not_shrink_goes_as_it_is():
    """A record that zstd makes longer is sent without compression."""
    batch = pending_of([(bytes(range(KEY_BYTES)), b"", 5, [], [])]).batch(1 << 20)
    assert len(batch._build()) == batch.size()
    assert read(batch)[0].key == bytes(range(KEY_BYTES))


def test_what_is_dropped_is_gone_and_the_rest_goes_on():
    """Batches from the front, one at least; sizes come back to nothing."""
    records = [(b"%042d" % i, bytes(100), i, [], []) for i in range(10)]
    pending = pending_of(records)
    found = []
    while pending:
        batch = pending.batch(HEADER_BYTES + 1)
        assert batch.count == 1
        found.append((batch.next_seq, read(batch)[0].key))
        pending.drop(batch.count)
    assert found == [(i + 1, b"%042d" % i) for i in range(10)]
    assert pending.size_bytes == 0


def test_records_behind_a_number():
    """A frame that was sent in part goes on in its middle; a gap over many numbers stays whole."""
    head = head_of([], [])
    parcel = Parcel([5, 6, 9], [b"a", b"b", b"c"], [b""] * 3, [1, 2, 3], [head] * 3)
    assert parcel.after(4) is parcel
    assert parcel.after(5).keys == [b"b", b"c"]
    assert parcel.after(7).keys == [b"c"]
    assert parcel.after(9).keys == []


def test_numbers_of_any_length():
    """Zigzag: small numbers of either sign are short."""
    assert [varint(n) for n in (0, -1, 1, 63, 64, -65, 300)] == [
        b"\x00", b"\x01", b"\x02", b"\x7e", b"\x80\x01", b"\x81\x01", b"\xd8\x04",
    ]  # fmt: skip
