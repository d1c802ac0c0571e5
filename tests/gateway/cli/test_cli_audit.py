"""`tidegate audit` over a spool made here, frame by frame."""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
import types
from pathlib import Path

import pytest

from gateway.audit.event import (
    Control,
    EpochOpen,
    Event,
    Heartbeat,
    ModelFacts,
    Prediction,
    RouteFacts,
    Tensor,
)
from gateway.audit.feed import Delivery, Hole, Positions, Skipped
from gateway.audit.frame import Events, encoder, seal
from gateway.errors import FrameCorrupt, LogError

SOURCE, EPOCH = 0x0123456789ABCDEF, 0x6B03F3B8
PREFIX = f"{SOURCE:016x}-{EPOCH:08x}-"


def prediction(request_id: str, at_ns: int, model: str = "flights") -> Prediction:
    """An answered request of two floats."""
    return Prediction(
        kind="done",
        request_id=request_id,
        done_ns=at_ns,
        rows=1,
        route=RouteFacts(12, 31, "canary", "canary", 1000, "weight"),
        model=ModelFacts(model, "2"),
        inputs=[Tensor("X", "FP32", (1, 2), struct.pack("<2f", 1.5, -2.0))],
        outputs=[Tensor("name", "BYTES", (1,), b"\x02\0\0\0ok")],
    )


def write(state_dir: Path, source: int, frames: list[list[Event]], synced: int | None = None) -> None:
    """One epoch, a segment a frame."""
    epoch = state_dir / "spool" / f"{source:016x}" / f"{EPOCH:08x}"
    epoch.mkdir(parents=True)
    (epoch.parent / "epoch").write_text(f"{EPOCH}\n")
    first = 0
    for events in frames:
        content = seal(first, len(events), encoder.encode(Events(events)))
        (epoch / f"{first:020d}.log").write_bytes(content)
        first += len(events)
    (epoch / "synced").write_bytes(struct.pack("=Q", first if synced is None else synced))


@pytest.fixture
def at(state_dir):
    """A state directory with two sources; the arguments that lead there."""
    opened = EpochOpen("g", "worker", 0, None, at_ns=1)
    write(
        state_dir,
        SOURCE,
        [
            [opened, prediction("a", 10)],
            [prediction("b", 20, "other"), Heartbeat(at_ns=25)],
            [prediction("c", 30)],
        ],
    )
    shift = Control("shift", model="flights", revision=13, by="token:ci", reason="go", at_ns=15)
    write(state_dir, SOURCE + 1, [[shift]])
    return ("--state-dir", str(state_dir))


def ids(result) -> list[str]:
    """request ids of the predictions printed as JSON lines."""
    return [json.loads(line).get("request_id", "-") for line in result.stdout.splitlines()]


def test_tail_prints_the_last_in_order_of_time(run, at) -> None:
    """Sources are merged by time; heartbeats only when asked for."""
    assert ids(run("audit", "tail", "--json", *at)) == ["-", "a", "-", "b", "c"]
    assert ids(run("audit", "tail", "-n", "2", "--json", *at)) == ["b", "c"]
    assert ids(run("audit", "tail", "--model", "flights", "--json", *at)) == ["a", "-", "c"]
    assert ids(run("audit", "tail", "--type", "heartbeat", "--json", *at)) == ["-"]
    text = run("audit", "tail", *at).stdout
    assert len(text.splitlines()) == 5
    assert "control.shift" in text
    assert "revision 13 by token:ci: go" in text


def test_get_finds_the_record(run, at) -> None:
    """By id, in whatever segment; tensors readable, --json the whole record."""
    shown = run("audit", "get", f"{PREFIX}{1:016x}", *at)
    assert shown.exit_code == 0, shown.stderr
    assert "1.5 -2" in shown.stdout
    assert "'ok'" in shown.stdout
    assert "weight 10%" in shown.stdout
    record = json.loads(run("audit", "get", f"{PREFIX}{4:016x}", "--json", *at).stdout)
    assert record["request_id"] == "c"
    assert record["id"] == f"{PREFIX}{4:016x}"
    assert run("audit", "get", f"{SOURCE + 1:016x}-{EPOCH:08x}-{0:016x}", *at).exit_code == 0


def test_get_of_nothing_is_a_no_and_of_nonsense_an_input_error(run, at) -> None:
    """Absent: 1; not an id: 2; each one line."""
    for wanted, code in ((f"{PREFIX}{99:016x}", 1), ("zz", 2)):
        result = run("audit", "get", wanted, "--wait-ms", "0", *at)
        assert result.exit_code == code
        assert len(result.stderr.splitlines()) == 1


def test_what_is_not_synced_is_not_there(run, state_dir) -> None:
    """Readers stop at `synced`."""
    write(state_dir, SOURCE, [[prediction("a", 1)], [prediction("b", 2)]], synced=1)
    at = ("--state-dir", str(state_dir))
    assert ids(run("audit", "tail", "--json", *at)) == ["a"]
    assert run("audit", "get", f"{PREFIX}{1:016x}", "--wait-ms", "0", *at).exit_code == 1


def test_status_sums_up(run, at) -> None:
    """One row a source."""
    rows = json.loads(run("audit", "status", "--json", *at).stdout)["sources"]
    assert [row["next_seq"] for row in rows] == [5, 1]
    assert "2 sources" in run("audit", "status", *at).stdout


def test_status_says_how_the_forwarder_does(run, at, state_dir) -> None:
    """What waits and why, what was quarantined, and that who said so is gone; without a forwarder nothing."""
    assert json.loads(run("audit", "status", "--json", *at).stdout)["forwarder"] is None
    assert "forwarder" not in run("audit", "status", *at).stdout
    said = {
        "at_ns": time.time_ns() - 60 * 10**9, "why": "b:9092 refuses connections", "stalled_ms": 9, "lag_events": 7,
        "lag_bytes": 1 << 20, "oldest_age_ms": 4000, "forwarded_events": 5, "quarantined": 2,
    }  # fmt: skip
    (state_dir / "forwarder").mkdir()
    (state_dir / "forwarder" / "status.json").write_text(json.dumps(said))
    found = json.loads(run("audit", "status", "--json", *at).stdout)["forwarder"]
    assert (found["why"], found["lag_events"]) == (said["why"], 7)
    assert (
        "forwarder: 5 records sent since its start, 7 wait (1.0 MiB, the oldest 4 s), 2 told by a gap"
        " (quarantine.jsonl); nothing is sent: b:9092 refuses connections; it last said so 60 s ago"
    ) in " ".join(run("audit", "status", *at).stdout.split())


def test_verify_says_no_when_numbers_are_missing(run, at, state_dir) -> None:
    """Whole: exit 0; a segment taken out of the middle: exit 1 and the range."""
    assert run("audit", "verify", *at).exit_code == 0
    next((state_dir / "spool").glob(f"*/*/{2:020d}.log")).unlink()
    result = run("audit", "verify", *at)
    assert result.exit_code == 1
    assert "2..3" in result.stdout
    assert json.loads(run("audit", "verify", "--json", *at).stdout)["ok"] is False


def test_no_log_is_an_input_error(run, tmp_path) -> None:
    """A state directory without a spool: exit 2 and what to name."""
    for args in (("tail",), ("get", f"{PREFIX}{1:016x}"), ("verify",), ("status",)):
        result = run("audit", *args, "--state-dir", "absent")
        assert result.exit_code == 2
        assert "--state-dir" in result.stderr


class FakeFeed:
    """A feed of two reads, then quiet, then Ctrl-C."""

    def __init__(self, *args: object, **named: object) -> None:
        self.args, self.named = args, named
        self.committed: list[int] = []
        self.reads = [[prediction("k1", 1)], [prediction("k2", 2, "other")], []]
        for number, events in enumerate(self.reads):
            for event in events:
                event.id = f"{PREFIX}{number:016x}"

    @property
    def positions(self) -> Positions:
        return {"read": 3 - max(len(self.reads), 1)}

    def ends(self) -> Positions:
        return {"read": 3}

    def commit(self) -> bool:
        self.committed.append(len(self.reads))
        return True

    def read(self, max_events: int, wait_ms: int) -> Delivery:
        if not self.reads:
            raise KeyboardInterrupt
        return Delivery(self.reads.pop(0), [])

    def close(self) -> None:
        pass


def test_kafka_reads_the_topic_through_the_feed(run, monkeypatch) -> None:
    """--kafka needs no state directory; tail reads until the topic is quiet."""
    module = types.ModuleType("gateway.audit.kafka_feed")
    monkeypatch.setattr(module, "KafkaFeed", FakeFeed, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    at = ("--kafka", "127.0.0.1:9092", "--state-dir", "absent")
    assert ids(run("audit", "tail", "--json", *at)) == ["k1", "k2"]
    assert ids(run("audit", "tail", "-n", "1", "--json", *at)) == ["k2"]


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_a_group_commits_what_was_printed(run, at, monkeypatch, follow) -> None:
    """All it has not read, committed batch by batch behind the print; it needs a topic and takes no number."""
    made: list[FakeFeed] = []

    def make(*args: object, **named: object) -> FakeFeed:
        made.append(FakeFeed(*args, **named))
        return made[-1]

    module = types.ModuleType("gateway.audit.kafka_feed")
    monkeypatch.setattr(module, "KafkaFeed", make, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    group = ("--group", "mine", "--json", "--kafka", "127.0.0.1:9092", "--since", "1970-01-01")
    result = run("audit", "tail", *group, *follow)
    assert result.exit_code == 0, result.stderr
    assert ids(result) == ["k1", "k2"]
    assert made[0].named == {"group": "mine", "since_ns": 0, "arguments": {}}
    assert made[0].committed[:2] == [2, 1]
    for wrong in (("--group", "mine", *at), (*group, "-n", "3")):
        result = run("audit", "tail", *wrong)
        assert result.exit_code == 2
        assert "--kafka" in result.stderr


def test_what_was_missed_is_told(run, monkeypatch) -> None:
    """What a topic has no more, and holes whose cause no gap record tells, on stderr; stdout holds records alone."""

    class Behind(FakeFeed):
        def read(self, max_events: int, wait_ms: int) -> Delivery:
            found = super().read(max_events, wait_ms)
            holes = [Hole(SOURCE, EPOCH, 0, 4, "retention"), Hole(SOURCE, EPOCH, 7, 7)]
            return Delivery(found.events, holes, [Skipped(2, 10, 19)]) if found.events else found

    module = types.ModuleType("gateway.audit.kafka_feed")
    monkeypatch.setattr(module, "KafkaFeed", Behind, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for command in (["tail", "--json"], ["export"]):
        result = run("audit", *command, "--kafka", "127.0.0.1:9092")
        assert ids(result) == ["k1", "k2"]
        assert "offsets 10 to 19 of partition 2" in result.stderr
        assert f"not read (retention): 5 records from {PREFIX}{0:016x} on" in result.stderr
        assert f"{7:016x}" not in result.stderr


def test_follow_goes_on_where_the_tail_ended(run, at, monkeypatch) -> None:
    """The feed starts at the positions read; Ctrl-C ends with 0."""
    made: list[FakeFeed] = []

    def make(*args: object, **named: object) -> FakeFeed:
        made.append(FakeFeed(*args, **named))
        return made[-1]

    monkeypatch.setattr("gateway.cli.places.SpoolFeed", make)
    result = run("audit", "tail", "-n", "1", "--follow", "--model", "flights", "--json", *at)
    assert result.exit_code == 0, result.stderr
    assert ids(result) == ["c", "k1"]
    assert made[0].args[1] == {f"{SOURCE:016x}-{EPOCH:08x}": 5, f"{SOURCE + 1:016x}-{EPOCH:08x}": 1}


@pytest.mark.parametrize("command", [("tail",), ("get", f"{SOURCE:016x}-{EPOCH:08x}-{0:016x}")])
def test_a_broker_that_is_not_there_is_told_in_words(run, command: tuple[str, ...]) -> None:
    """3, and why: what the forwarder says of it, not the name of an exception."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{held.getsockname()[1]}"
        result = run("audit", *command, "--kafka", where)
    assert result.exit_code == 3
    assert result.stderr == (
        f"tidegate: Kafka cannot be read: {where} refuses connections: nothing listens there\n"
    )


def test_errors_of_the_log_end_in_one_line(run, monkeypatch) -> None:
    """A feed that nobody answers: 3; a frame that cannot be read: 1."""

    class Unreachable(LogError):
        code = "feed_unreachable"

    for error, code in ((Unreachable("no broker"), 3), (FrameCorrupt("bad frame"), 1)):
        module = types.ModuleType("gateway.audit.kafka_feed")

        def fail(*args: object, error: Exception = error, **named: object) -> None:
            raise error

        monkeypatch.setattr(module, "KafkaFeed", fail, raising=False)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        result = run("audit", "tail", "--kafka", "127.0.0.1:9")
        assert result.exit_code == code
        assert str(error) in result.stderr
