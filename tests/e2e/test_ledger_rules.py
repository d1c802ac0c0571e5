"""The ledger's own rules: a checker that cannot fail proves nothing."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from tests.e2e.foreign import Topic, problems
from tests.e2e.ledger import Answers, Ledger, Plan, Sampled

STREAM = "00000000000000aa-00000001"
OTHER = "00000000000000bb-00000001"


def _event(seq: int, stream: str = STREAM, **more: Any) -> dict[str, Any]:
    fields = {"type": "heartbeat", "kind": "heartbeat", **more}
    return {"id": f"{stream}-{seq:016x}", **fields}


def _gap(seq: int, first: int, last: int) -> dict[str, Any]:
    source, epoch = OTHER.split("-")
    of = {"source": STREAM[:16], "epoch": int(epoch, 16), "from_seq": first, "to_seq": last}
    return _event(seq, f"{source}-{epoch}", type="gap", kind="gap", cause="owner_died", **of)


def _close(seq: int, events: int) -> dict[str, Any]:
    of = {"source": STREAM[:16], "epoch": 1, "events": events, "cause": "owner_died"}
    return _event(seq, OTHER, type="epoch_close", kind="epoch_close", **of)


def _prediction(seq: int, number: int) -> dict[str, Any]:
    return _event(seq, type="prediction", kind="done", request_id=f"q-{number}", inputs=[], outputs=[])


def _found(ledger: Ledger, *events: dict[str, Any]) -> Topic:
    topic = Topic(ledger)
    for event in events:
        topic.take(event, 0)
    return topic


def _answered(*seqs: int, unlogged: tuple[int, ...] = ()) -> Ledger:
    ledger = Ledger()
    for seq in seqs:
        assert ledger.answered.put(f"{STREAM}-{seq:016x}", seq)
    for seq in unlogged:
        assert ledger.unlogged.put(f"{STREAM}-{seq:016x}", seq)
    return ledger


def test_a_whole_topic_has_no_problems() -> None:
    """Everything answered is there, a resend is dropped, a hole has its gap, the close adds up."""
    ledger = _answered(1, 2, 5, unlogged=(3,))
    numbers = (0, 1, 2, 1, 2, 5)
    found = _found(ledger, *(_prediction(i, i) for i in numbers), _gap(0, 3, 3), _gap(1, 4, 4), _close(2, 6))
    assert (found.resent, found.lacks()) == (2, False)
    assert problems(ledger, found) == []


@pytest.mark.parametrize(
    ("ledger", "events", "says"),
    [
        (_answered(0, 3), [_event(0), _event(1)], "1 of 2 answered are not in the topic"),
        (_answered(0), [_event(0), _event(2)], "numbers 1..1 have neither event nor gap"),
        (_answered(0), [_event(0), _event(4), _gap(0, 1, 2)], "numbers 1..3 have neither"),
        (_answered(0), [_event(0), _close(0, 2)], "2 numbers drawn, 1 records and 0 in gaps"),
        (_answered(0), [_event(0), _event(1), _gap(0, 1, 1), _close(1, 2)], "2 records and 1 in gaps"),
        (_answered(), [_prediction(0, 7), _prediction(1, 7)], "1 requests have more than one record: q-7"),
        (_answered(0), [_prediction(0, 7)], "was given to q-0, its record is of q-7"),
        (_answered(unlogged=(1,)), [_event(0)], "1 answered unlogged have neither record nor gap"),
        (_answered(0), [_event(0), _event(0, "00000000000000aa-00000002")], "never closed"),
        (Ledger(wrong=["q-1 got q-2"]), [], "q-1 got q-2"),
    ],
)
def test_each_broken_promise_is_said(ledger: Ledger, events: list[dict[str, Any]], says: str) -> None:
    """A missing answer, a bare hole, a short epoch, an open one: each gives its sentence."""
    assert any(says in problem for problem in problems(ledger, _found(ledger, *events)))


def test_an_epoch_on_two_partitions_is_said() -> None:
    """An epoch that moved between partitions would break every high-water mark."""
    topic = _found(Ledger(), _event(0))
    topic.take(_event(1), 1)
    assert "partitions [0, 1]" in problems(Ledger(), topic)[0]


def test_tensors_that_differ_are_said() -> None:
    """The logged tensor bytes are those sent and answered."""
    ledger = _answered(0)
    topic = _found(ledger, _event(0))
    identity = f"{STREAM}-{0:016x}"
    ledger.sampled[identity] = Sampled("a", "b")
    topic.sampled[identity] = Sampled("a", "c")
    assert problems(ledger, topic) == [f"{identity}: tensors answered differ from the logged ones"]


def test_an_id_that_is_given_twice_is_seen() -> None:
    """Compact as it is, the ledger knows each id and the request that got it."""
    answers = Answers()
    assert answers.put(f"{STREAM}-{9:016x}", 4)
    assert not answers.put(f"{STREAM}-{9:016x}", 5)
    assert (len(answers), list(answers), answers.of(STREAM, 9)) == (1, [(STREAM, 9, 4)], 4)
    assert answers.of(STREAM, 8) is answers.of(STREAM, 10) is answers.of(OTHER, 9) is None


def test_what_was_not_read_yet_is_waited_for() -> None:
    """The end of the topic is where everything answered lies before it."""
    assert _found(_answered(3), _event(0)).lacks()
    assert not _found(_answered(0), _event(0)).lacks()


def test_requests_differ_and_are_read_as_they_were_made() -> None:
    """A million requests are a million rows, exact in FP32; the text that is sent says the row that is hashed."""
    plan = Plan("", "m", "X", 30, 1_000_000)
    assert len({struct.pack("<30f", *plan.row(number)) for number in range(0, 1_000_000, 997)}) == 1004
    for number in (0, 65_535, 65_536, 999_999):
        body = json.loads(plan.request(number).partition(b"\r\n\r\n")[2])
        assert body["inputs"][0]["data"] == plan.row(number)
        assert list(struct.unpack("<30f", struct.pack("<30f", *plan.row(number)))) == plan.row(number)
