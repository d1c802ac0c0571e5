"""Rings as a process would leave them that wants to harm the log: the recorder goes on for all others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.audit import ring as layout
from gateway.audit.event import Gap
from gateway.audit.frame import Events, encoder, seal
from gateway.audit.writer import Writer
from tests.gateway.audit.sim import Log, forget_recorder, label, settle

MOST = 2**64 - 1


def put(writer: Writer, first_seq: int, count: int, payload: bytes | None = None) -> None:
    """Publish a whole frame of any numbers, behind the back of the ring's own rules."""
    payload = encoder.encode(Events([label(9)])) if payload is None else payload
    frame = seal(first_seq, count, payload)
    ring = writer.ring
    at = ring.committed % ring.capacity
    ring._data[at : at + len(frame)] = frame
    ring._words[layout._COMMITTED] = ring.committed + len(frame)


def again(writer: Writer) -> None:
    put(writer, 0, 1)


def beyond_all_numbers(writer: Writer) -> None:
    writer.ring._words[layout._ASSIGNED] = MOST
    put(writer, MOST, 2**32 - 1)


def of_no_number(writer: Writer) -> None:
    put(writer, writer.ring.assigned, 0)


def never_drawn(writer: Writer) -> None:
    put(writer, writer.ring.assigned, 1)


def laps_without_end(writer: Writer) -> None:
    ring = writer.ring
    at = ring.synced % ring.capacity
    ring._data[at : at + 8] = ring._data[0:8] = b"\xff" * 8
    ring._words[layout._COMMITTED] = MOST // ring.capacity * ring.capacity


def a_mark_behind(writer: Writer) -> None:
    """The recorder's mark, back at the beginning of a lap that is on disk."""
    writer.ring._words[layout._SYNCED] = 0


def marks_crossed(writer: Writer) -> None:
    writer.ring._words[layout._COMMITTED] = 8


@pytest.mark.parametrize(
    "harm",
    [again, beyond_all_numbers, of_no_number, never_drawn, laps_without_end, a_mark_behind, marks_crossed],
)
def test_a_ring_that_lies_ends_its_own_epoch_alone(
    log: Log, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Writer], None]
):
    """Whatever an owner writes into its ring, others are recorded and what was on disk of its own stays."""
    monkeypatch.setattr("gateway.audit.drain.DOUBT_NS", 0)
    liar, honest = log.owner(), log.owner()
    recorder = log.recorder(segment_bytes=200)
    for value in range(4):
        liar.append_events([label(value)])
        settle(recorder)
    harm(liar)
    settle(recorder)
    honest.append_events([label(7)])
    settle(recorder)
    assert sorted(log.labels()) == [0, 1, 2, 3, 7]
    told = [(e.from_seq, e.to_seq, e.cause) for e in log.read() if isinstance(e, Gap)]
    assert told == [(5, None, "corrupt")]
    assert not recorder.failing
    assert not honest.ring.unavailable
    assert log.verify().ok


def test_a_start_takes_no_number_of_a_ring_for_a_reason_to_cut(log: Log, monkeypatch: pytest.MonkeyPatch):
    """A frame that waits and says that it is the first does not have the next recorder cut what is on disk."""
    monkeypatch.setattr("gateway.audit.drain.DOUBT_NS", 0)
    liar = log.owner()
    recorder = log.recorder(segment_bytes=200)
    for value in range(4):
        liar.append_events([label(value)])
        settle(recorder)
    forget_recorder(recorder)
    again(liar)
    recorder = log.recorder(segment_bytes=200)
    settle(recorder)
    assert log.labels() == [0, 1, 2, 3]
    assert log.verify().ok


def test_a_frame_is_sealed_as_the_ring_seals_it(log: Log):
    """The frames of this file are whole: one of the next number is recorded."""
    writer = log.owner()
    recorder = log.recorder()
    settle(recorder)
    at = writer.ring.assigned
    writer.ring._words[layout._ASSIGNED] = at + 1
    put(writer, at, 1)
    settle(recorder)
    assert log.labels() == [9]
