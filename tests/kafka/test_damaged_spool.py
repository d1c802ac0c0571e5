"""The forwarder over a spool that is damaged: what cannot be sent is told in the topic, and holds up nothing."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest

from gateway.audit.event import Gap
from gateway.audit.frame import seal
from gateway.audit.outgoing import Outgoing
from gateway.audit.spool import EpochPath, EpochReader, epoch_path, segment_name, write_closed
from gateway.audit.storage import DISK
from tests.gateway.audit.sim import GATEWAY_ID, label
from tests.kafka.lived import Lived, check_contiguous, read_topic

FRAME = msgspec.msgpack.encode({"frame": "events", "events": [label(1), label(2)]})


@pytest.fixture
def epoch(tmp_path: Path) -> EpochPath:
    """An open epoch of three segments, each of two frames of two events."""
    made = epoch_path(tmp_path / "spool", 7, 1)
    made.path.mkdir(parents=True)
    for first in (0, 4, 8):
        content = seal(first, 2, FRAME) + seal(first + 2, 2, FRAME)
        (made.path / segment_name(first)).write_bytes(content)
    (made.path / "synced").write_bytes((12).to_bytes(8, "little"))
    return made


def damage(epoch: EpochPath, first: int, frame: int) -> None:
    """A bit of a segment's first or second frame."""
    path = epoch.path / segment_name(first)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 * frame + 30] ^= 1
    path.write_bytes(content)


def sent(outgoing: Outgoing, epoch: EpochPath, from_seq: int = 0) -> list[tuple[str, int]]:
    """Each record's type, or a gap's cause and first number, and the number behind it."""
    found = []
    for parcel in outgoing.parcels(EpochReader(epoch), epoch, from_seq, 1 << 20):
        for value, following in zip(parcel.values, parcel.next_seqs, strict=True):
            event = msgspec.msgpack.decode(value)
            gap = event["type"] == "gap"
            told = f"{event['cause']} {event['from_seq']}-{event['to_seq']}" if gap else "label"
            found.append((told, following))
    return found


@pytest.fixture
def outgoing(tmp_path: Path) -> Outgoing:
    """To a topic that takes a MiB."""
    return Outgoing(tmp_path, GATEWAY_ID, "msgpack")


@pytest.mark.parametrize("frame", [0, 1])
def test_damage_in_the_middle_is_told_in_its_place(outgoing, epoch, frame: int) -> None:
    """What a segment before the last does not give any more has a gap of its numbers, before what follows."""
    damage(epoch, 4, frame)
    first = 4 + 2 * frame
    expected = [("label", seq + 1) for seq in range(first)]
    expected += [(f"corrupt {first}-7", 8), *(("label", seq + 1) for seq in range(8, 12))]
    assert sent(outgoing, epoch) == expected
    assert sent(outgoing, epoch, first) == expected[first:]


def test_a_hole_between_whole_frames_is_not_damage(outgoing, epoch) -> None:
    """Numbers that found no room have a gap of their own; nothing is added, also where a segment ends there."""
    (epoch.path / segment_name(4)).write_bytes(seal(4, 2, FRAME))
    assert "corrupt" not in str(sent(outgoing, epoch))


def test_a_damaged_end_is_waited_for_until_the_epoch_is_over(outgoing, epoch) -> None:
    """Its owner may still write behind it; once nothing comes any more a gap has the rest."""
    damage(epoch, 8, 1)
    assert sent(outgoing, epoch)[-1] == ("label", 10)
    write_closed(epoch, 12, "owner_died")
    assert sent(outgoing, epoch)[-2:] == [("label", 10), ("corrupt 10-11", 12)]


def test_a_disk_that_fails_holds_up_its_epoch_only(outgoing, epoch, monkeypatch, caplog) -> None:
    """EIO ends the epoch's records for now, without a gap, and is told once; all is sent when the disk gives it."""
    write_closed(epoch, 12, "closed")
    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
        failing = Mock(side_effect=OSError(errno.EIO, "Input/output error"))
        broken.setattr(type(DISK), "read", failing)
        assert sent(outgoing, epoch) == sent(outgoing, epoch) == []
    assert [record.message for record in caplog.records] == ["segment_unreadable"]
    assert len(sent(outgoing, epoch)) == 12


def test_retention_may_take_an_epoch_whose_end_is_damaged(
    tmp_path: Path, kafka_bootstrap: str, epoch
) -> None:
    """The position comes to the epoch's end, so nothing of it is held back for ever; the topic has the gap."""
    one = Lived(tmp_path / "state", kafka_bootstrap, partitions=1)
    try:
        damage(epoch, 8, 1)
        write_closed(epoch, 12, "owner_died")
        epoch.path.parent.rename(one.log.spool / epoch.path.parent.name)
        forwarder = one.forward()
        assert (forwarder.retries, forwarder.quarantined) == (0, 1)
        events = check_contiguous(read_topic(kafka_bootstrap, one.kafka.topic), msgspec.msgpack.decode)
        assert msgspec.convert(events[epoch.key][-1], Gap).cause == "corrupt"
    finally:
        one.close()
