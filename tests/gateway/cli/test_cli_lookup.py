"""Ids that lead nowhere, each with its one clear answer; and `audit verify` and `positions` as commands."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from gateway.audit.event import Event, Feedback, Gap, Heartbeat, decode_event
from gateway.audit.frame import Events, encoder
from gateway.audit.identity import EventId, source_of
from gateway.audit.spool import epoch_path, segments
from gateway.cli.progress import reading
from tests.gateway.audit.sim import GATEWAY_ID, Log, forget_owner, label, settle, stop


class Spool:
    """A worker's epoch with a gap, over, in a log of several segments."""

    def __init__(self, state_dir: Path) -> None:
        self.log = Log(state_dir)
        (state_dir / "gateway_id").write_text(f"{GATEWAY_ID}\n")
        self.writer = self.log.owner()
        self.recorder = self.log.recorder(segment_bytes=500)
        for value in range(20):
            if value == 10:
                self.writer.lose(3)
            self.writer.append_events([label(value)])
            self.recorder.step()
        settle(self.recorder)
        self.at = ("--state-dir", str(state_dir))
        self.epoch = epoch_path(self.log.spool, self.writer.source.source, self.writer.source.epoch)

    def end(self) -> None:
        """The worker ends by itself, and the recorder too."""
        self.writer.close()
        forget_owner(self.writer)
        stop(self.recorder)

    def id(self, seq: int) -> str:
        """One of the epoch's."""
        return str(EventId(self.epoch.source, self.epoch.epoch, seq))


@pytest.fixture
def spool(state_dir: Path) -> Spool:
    """See `Spool`; it ends before the test looks."""
    made = Spool(state_dir)
    made.end()
    return made


def refusal(run, *args: str) -> str:
    """What `audit get` says and exits with 1; one line."""
    result = run("audit", "get", "--wait-ms", "0", *args)
    assert result.exit_code == 1, result.stderr
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def test_a_record_is_found(run, spool: Spool) -> None:
    """In any segment, by its id; --json the whole record."""
    for seq, value in ((1, 0), (10, 9), (15, 10), (24, 19)):
        result = run("audit", "get", spool.id(seq), "--json", *spool.at)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["labels"][0]["value"] == value


@pytest.mark.parametrize("wrong", ["", "zz", "0" * 16, "A" * 16 + "-00000001-" + "0" * 16, "é" * 42])
def test_what_is_no_id_is_an_input_error(run, spool: Spool, wrong: str) -> None:
    """Exit 2, and the form that is expected."""
    result = run("audit", "get", wrong, *spool.at)
    assert result.exit_code == 2
    assert "expected 16-8-16 hex digits" in result.stderr


def test_another_gateway_s_id(run, spool: Spool) -> None:
    """Named as such, with this gateway's own id; not one of our own that never wrote."""
    foreign = EventId(source_of("ffffffffffffffff", "worker", 0), spool.epoch.epoch, 1)
    assert f"is no source of gateway {GATEWAY_ID}" in refusal(run, str(foreign), *spool.at)
    idle = EventId(source_of(GATEWAY_ID, "worker", 7), spool.epoch.epoch, 1)
    assert "this gateway's worker 7, which never wrote" in refusal(run, str(idle), *spool.at)


def test_a_number_that_was_never_drawn(run, spool: Spool) -> None:
    """How far its epoch went; and which epoch is the last where it names a later one."""
    assert "its epoch ended before number 26 (closed)" in refusal(run, spool.id(99), *spool.at)
    later = EventId(spool.epoch.source, spool.epoch.epoch + 1, 0)
    assert f"the last one is {spool.epoch.epoch:08x}" in refusal(run, str(later), *spool.at)


def test_a_number_of_a_living_epoch_is_waited_for(run, state_dir: Path) -> None:
    """No longer than was asked; then how far it is. One that has a gap is not waited for."""
    made = Spool(state_dir)
    assert "its epoch is at number 25" in refusal(run, made.id(99), *made.at)
    started_s = time.monotonic()
    result = run("audit", "get", made.id(12), "--wait-ms", "60000", *made.at)
    assert "cause ring_full" in result.stderr
    assert time.monotonic() - started_s < 30


def test_a_number_in_a_gap(run, spool: Spool) -> None:
    """Which gap, its cause, and the record that says so: the owner's or the recorder's."""
    assert "numbers 11 to 13 have no records, cause ring_full" in refusal(run, spool.id(12), *spool.at)
    writer = spool.log.owner()
    recorder = spool.log.recorder()
    writer.append_events([label(1)])
    settle(recorder)
    writer.lose(2)
    writer.ring.clear_pending()
    forget_owner(writer)
    stop(recorder)
    lost = EventId(writer.source.source, writer.source.epoch, 2)
    said = refusal(run, str(lost), *spool.at)
    assert "numbers 2 to 3 have no records, cause owner_died" in said
    # The first recorder of this process still has its own lock.
    assert f"by {source_of(GATEWAY_ID, 'recorder', 1):016x}-" in said


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_number_that_retention_took(run, spool: Spool, whole: bool, told: bool) -> None:
    """Said so, by a gap's word where there is one; the topic may have it."""
    first = segments(spool.epoch)[3][0]
    for seq, path in segments(spool.epoch):
        if whole or seq < first:
            path.unlink()
    if whole:
        for path in spool.epoch.path.iterdir():
            path.unlink()
        spool.epoch.path.rmdir()
    if told:
        recorder = spool.log.recorder()
        end = 25 if whole else first - 1
        recorder._log([Gap(spool.epoch.key[:16], spool.epoch.epoch, 0, end, "retention", at_ns=1)])
        stop(recorder)
    said = refusal(run, spool.id(2), *spool.at)
    assert "retention took" in said
    assert "--kafka" in said
    assert ("(told " in said) == told
    if not told:
        assert ("all of its epoch" if whole else f"up to number {first - 1}") in said


def test_a_number_in_a_damaged_segment(run, spool: Spool) -> None:
    """Which file, which byte, what stands there; those before and behind are found."""
    first, path = segments(spool.epoch)[1]
    content = bytearray(path.read_bytes())
    content[4] ^= 1
    path.write_bytes(content)
    said = refusal(run, spool.id(first), *spool.at)
    assert f"{path.name}, which is damaged at byte 0" in said
    assert "CRC does not match" in said
    for seq in (first - 1, segments(spool.epoch)[2][0]):
        assert run("audit", "get", spool.id(seq), *spool.at).exit_code == 0
    tail = run("audit", "tail", "-n", "100", "--type", "feedback", *spool.at)
    assert tail.exit_code == 0
    assert 0 < len(tail.stdout.splitlines()) < 20
    assert f"{path.name} is damaged: byte 0" in tail.stderr


def test_a_hole_that_nobody_told(run, spool: Spool) -> None:
    """A missing segment: the log has lost it."""
    first, path = segments(spool.epoch)[1]
    path.unlink()
    assert "no gap says why" in refusal(run, spool.id(first), *spool.at)


def test_records_of_a_later_version(run, state_dir: Path) -> None:
    """A frame that we cannot read: named, exit 1. A later schema that we can: shown, with a word on stderr."""
    made = Spool(state_dir)
    made.writer.append_run(encoder.encode({"frame": "columns2"}), 1)
    newer = msgspec.msgpack.decode(encoder.encode(Events([label(7)])))
    newer["events"][0] |= {"schema": 9, "more": 1}
    made.writer.append_run(encoder.encode(newer), 1)
    made.recorder.step()
    made.end()
    assert "frame kind 'columns2' is of a later version than" in refusal(run, made.id(25), *made.at)
    result = run("audit", "get", made.id(26), "--json", *made.at)
    assert result.exit_code == 0
    assert "schema 9" in result.stderr
    assert isinstance(decode_event(result.stdout.encode().strip()), Feedback)
    report = json.loads(run("audit", "verify", "--json", *made.at).stdout)
    assert report["ok"] is True
    tail = run("audit", "tail", "-n", "100", "--type", "feedback", "--json", *made.at)
    assert (tail.exit_code, len(tail.stdout.splitlines())) == (0, 21)
    assert f"{made.epoch.key} number 25: frame kind 'columns2'" in tail.stderr


class FakeLook:
    """A topic with a record and a gap of two numbers."""

    said: ClassVar[dict[str, tuple[int, str]]] = {}

    def __init__(self, bootstrap: str, topic: str, arguments: dict[str, object]) -> None:
        self.where = (bootstrap, topic)
        assert arguments == {}

    def records(self) -> float:
        return 3.0

    def find(self, wanted: EventId, advance: object) -> Event | None:
        if wanted.seq == 1:
            event = label(5)
            event.id = str(wanted)
            return event
        if wanted.seq in {2, 3}:
            return Gap("00" * 8, 1, 2, 3, "oversized", id=str(wanted._replace(seq=2)), at_ns=1)
        return None

    def positions(self, advance: object) -> list[Event]:
        return [Heartbeat(id="0" * 16 + "-00000001-" + "0" * 16, at_ns=1, positions=FakeLook.said)]

    def close(self) -> None:
        pass


def test_the_topic_is_looked_into(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """--kafka needs no state directory: a record, a gap that says why there is none, or nothing."""
    module = types.ModuleType("gateway.audit.topic_look")
    monkeypatch.setattr(module, "TopicLook", FakeLook, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    at = ("--kafka", "127.0.0.1:9092", "--state-dir", "absent")
    prefix = "0" * 16 + "-00000001-"
    assert run("audit", "get", f"{prefix}{1:016x}", *at).exit_code == 0
    assert run("audit", "get", f"{prefix}{2:016x}", *at).exit_code == 0
    assert "numbers 2 to 3 have no records, cause oversized" in refusal(run, f"{prefix}{3:016x}", *at)
    assert "another gateway's, never drawn, or not sent yet" in refusal(run, f"{prefix}{9:016x}", *at)


def test_the_topic_is_a_witness(run, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """--kafka: what the recorder's records in the topic say; one that does not agree is named."""
    module = types.ModuleType("gateway.audit.topic_look")
    monkeypatch.setattr(module, "TopicLook", FakeLook, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(FakeLook, "said", {spool.epoch.key: (3, "ab" * 32)})
    result = run("audit", "verify", "--kafka", "127.0.0.1:9", *spool.at)
    assert result.exit_code == 1
    assert "ALTERED: numbers 0 to 2" in result.stdout
    assert f"{'ab' * 32} at number 3, as the topic's record" in result.stdout
    monkeypatch.setattr(FakeLook, "said", {})
    assert run("audit", "verify", "--kafka", "127.0.0.1:9", *spool.at).exit_code == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_people(monkeypatch: pytest.MonkeyPatch, capsys, terminal: bool) -> None:
    """On a terminal, and where it takes long enough; in a pipe there is none."""
    monkeypatch.setenv("TTY_COMPATIBLE" if terminal else "TTY_NOTHING", "1")
    with reading(lambda: 100.0, "verifying") as advance:
        advance(40)
    with reading(lambda: 100.0, "looking", after_s=1000.0) as advance:
        advance(40)
    shown = capsys.readouterr()
    assert ("verifying" in shown.err, "looking" in shown.err, shown.out) == (terminal, False, "")


def test_positions_are_kept_and_held_against(run, spool: Spool, tmp_path: Path) -> None:
    """What `positions --json` prints is what `verify --against` reads; a change since then is named, exit 1."""
    kept = tmp_path / "kept.json"
    result = run("audit", "positions", "--json", *spool.at)
    kept.write_text(result.stdout)
    assert json.loads(result.stdout)["positions"][spool.epoch.key][0] == 26
    assert spool.epoch.key in run("audit", "positions", *spool.at).stdout
    verify = ("audit", "verify", "--against", str(kept), *spool.at)
    assert "no record differs from what is known" in run(*verify).stdout
    path = segments(spool.epoch)[1][1]
    path.write_bytes(path.read_bytes()[::-1])
    result = run(*verify)
    assert result.exit_code == 1
    assert f"DAMAGED: numbers {int(path.stem)} to" in result.stdout
    assert f"{path.name} byte 0" in result.stdout
    report = json.loads(run(*verify, "--json").stdout)
    (worker,) = [e for e in report["epochs"] if e["findings"]]
    assert worker["findings"][0]["segment"] == path.name
    assert worker["findings"][0]["offset"] == 0


def test_a_file_that_holds_no_positions(run, spool: Spool, tmp_path: Path) -> None:
    """Absent or something else: exit 2 and what was expected."""
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert run("audit", "verify", "--against", str(tmp_path / "absent"), *spool.at).exit_code == 2
    result = run("audit", "verify", "--against", str(other), *spool.at)
    assert result.exit_code == 2
    assert (
        f"{other}: no 'positions' in it; expected what `tidegate audit positions --json` prints"
        in result.stderr
    )
