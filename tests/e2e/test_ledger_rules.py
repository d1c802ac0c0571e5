"""The ledger's own rules: a checker that cannot fail proves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.foreign import Topic, problems
from tests.e2e.ledger import Ledger, Sampled

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


def _found(*events: dict[str, Any]) -> Topic:
    topic = Topic()
    for event in events:
        topic.take(event, 0, {})
    return topic


def _answered(*seqs: int) -> Ledger:
    return Ledger(answered={f"{STREAM}-{seq:016x}": f"q-{seq}" for seq in seqs})


def test_a_whole_topic_has_no_problems() -> None:
    """Everything answered is there, a resend is dropped, a hole has its gap, the close adds up."""
    found = _found(*(_event(i) for i in (0, 1, 2, 1, 2, 5)), _gap(0, 3, 3), _gap(1, 4, 4), _close(2, 6))
    assert found.resent == 2
    assert problems(_answered(1, 2, 5), found) == []


@pytest.mark.parametrize(
    ("ledger", "events", "says"),
    [
        (_answered(0, 3), [_event(0), _event(1)], "1 of 2 answered are not in the topic"),
        (_answered(0), [_event(0), _event(2)], "numbers 1..1 have neither event nor gap"),
        (_answered(0), [_event(0), _event(4), _gap(0, 1, 2)], "numbers 1..3 have neither"),
        (_answered(0), [_event(0), _close(0, 2)], "2 numbers drawn, events and gaps end at 1"),
        (_answered(0), [_event(0), _event(0, "00000000000000aa-00000002")], "never closed"),
        (Ledger(wrong=["q-1 got q-2"]), [], "q-1 got q-2"),
    ],
)
def test_each_broken_promise_is_said(ledger: Ledger, events: list[dict[str, Any]], says: str) -> None:
    """A missing answer, a bare hole, a short epoch, an open one: each gives its sentence."""
    assert any(says in problem for problem in problems(ledger, _found(*events)))


def test_an_epoch_on_two_partitions_is_said() -> None:
    """An epoch that moved between partitions would break every high-water mark."""
    topic = _found(_event(0))
    topic.take(_event(1), 1, {})
    assert "partitions [0, 1]" in problems(Ledger(), topic)[0]


def test_tensors_that_differ_are_said() -> None:
    """The logged tensor bytes are those sent and answered."""
    ledger, topic = _answered(0), _found(_event(0))
    identity = f"{STREAM}-{0:016x}"
    ledger.sampled[identity] = Sampled("a", "b")
    topic.sampled[identity] = Sampled("a", "c")
    assert problems(ledger, topic) == [f"{identity}: tensors answered differ from the logged ones"]
