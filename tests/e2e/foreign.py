"""A foreign reader of the topic, and what must agree with the client's ledger.

`read_topic` reads with librdkafka and plain msgpack, with nothing of ours; `problems` compares. A
2xx that is not in the topic, an event that counts twice behind a high-water mark, a number that
neither an event nor a gap covers, or a tensor that differs, is a broken promise.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tests.e2e.ledger import Ledger, Sampled, parted

OPEN_END = 2**63
"""Where a gap without an end is taken to end."""


@dataclass
class Topic:
    """What a foreign reader found, behind one high-water mark per (source, epoch).

    Of an epoch only the mark and the holes below it are kept: what is below the one and in none of the others was read.
    """

    ledger: Ledger = field(default_factory=Ledger)
    """What is looked for."""
    seen: bytearray = field(default_factory=bytearray)
    """How often each request has a record, by its number."""
    others: list[str] = field(default_factory=list)
    """Records whose request is not the one that was answered with their id."""
    events: int = 0
    resent: int = 0
    """Records that the marks dropped: sent again after a lost acknowledgement."""
    next_seq: dict[str, int] = field(default_factory=dict)
    holes: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    gaps: dict[str, list[tuple[int, int, str]]] = field(default_factory=lambda: defaultdict(list))
    closed: dict[str, tuple[int, str]] = field(default_factory=dict)
    """(source-epoch) -> numbers drawn and cause, from epoch_close."""
    partitions: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    roles: dict[str, str] = field(default_factory=dict)
    sampled: dict[str, Sampled] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def has(self, stream: str, seq: int) -> bool:
        """Whether a number has a record."""
        if seq >= self.next_seq.get(stream, 0):
            return False
        return not any(start <= seq <= end for start, end in self.holes.get(stream, ()))

    def lacks(self) -> bool:
        """Whether something that was answered lies beyond what was read; what is missing in between is for
        `problems`."""
        streams = self.ledger.answered.streams
        return any(self.next_seq.get(stream, 0) < len(column) for stream, column in streams.items())

    def take(self, event: dict[str, Any], partition: int) -> None:
        """Fold one record in."""
        identity: str = event["id"]
        stream, seq = parted(identity)
        expected = self.next_seq.get(stream, 0)
        self.partitions[stream].add(partition)
        if seq < expected:
            self.resent += 1
            return
        if seq > expected:
            self.holes[stream].append((expected, seq - 1))
        self.next_seq[stream] = seq + 1
        self.events += 1
        kind = event["type"]
        self.types[f"{kind}.{event['kind']}"] += 1
        if kind == "gap" and event["cause"] == "retention":
            # Left a spool, which says nothing of the topic: its records are here.
            return
        if kind == "gap":
            of = f"{event['source']}-{event['epoch']:08x}"
            to_seq = event["to_seq"] if event["to_seq"] is not None else OPEN_END
            self.gaps[of].append((event["from_seq"], to_seq, event["cause"]))
        elif kind == "epoch_close":
            self.closed[f"{event['source']}-{event['epoch']:08x}"] = (
                event["events"],
                event["cause"],
            )
        elif kind == "epoch_open":
            self.roles[stream] = event["role"]
        elif kind == "prediction":
            self._take_prediction(event, stream, seq)

    def _take_prediction(self, event: dict[str, Any], stream: str, seq: int) -> None:
        request: str | None = event["request_id"]
        if request is not None and request.startswith("q-"):
            number = int(request[2:])
            if number >= len(self.seen):
                self.seen.extend(bytes(max(65_536, number + 1 - len(self.seen))))
            self.seen[number] = min(self.seen[number] + 1, 255)
        answered = self.ledger.answered.of(stream, seq)
        if answered is not None and request != f"q-{answered}":
            self.others.append(f"{event['id']} was given to q-{answered}, its record is of {request}")
        if event["id"] in self.ledger.sampled:
            self.sampled[event["id"]] = Sampled(
                *(
                    hashlib.sha256(b"".join(t["data"] for t in event[side])).hexdigest()
                    for side in ("inputs", "outputs")
                )
            )


class TopicReader:
    """Reads the whole topic from its beginning, again and again to its end; knows only Kafka."""

    def __init__(self, bootstrap: str, topic: str, ledger: Ledger) -> None:
        self.found = Topic(ledger)
        self._topic = topic
        self._decoder = msgspec.msgpack.Decoder()  # untyped: plain maps
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"foreign-{time.monotonic_ns()}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_uncommitted",
                # Of each partition; 64 MB by default, which would be most of what the proof takes.
                "queued.max.messages.kbytes": 8192,
                "log_level": 0,
            }
        )

    def assign(self, timeout_s: float = 20) -> None:
        """Take every partition from offset 0, once the topic is there."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                known = self._consumer.list_topics(self._topic, timeout=5).topics[self._topic]
                if known.partitions and known.error is None:
                    break
            except KafkaException:
                pass
            if time.monotonic() > deadline:
                msg = f"topic {self._topic} is not there after {timeout_s:g} s"
                raise TimeoutError(msg)
            time.sleep(0.2)
        self._consumer.assign([TopicPartition(self._topic, p, 0) for p in known.partitions])

    def read_for(self, seconds: float) -> int:
        """Fold in what comes within `seconds`, or until nothing comes for 0.3 s; the count."""
        deadline, count = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            messages = self._consumer.consume(5000, timeout=0.3)
            if not messages:
                break
            for message in messages:
                error = message.error()
                if error is not None:
                    if error.code() != KafkaError._PARTITION_EOF and not error.retriable():  # noqa: SLF001
                        raise KafkaException(error)
                    continue
                event = self._decoder.decode(message.value())
                self.found.take(event, message.partition())
                count += 1
        return count

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def read_topic(bootstrap: str, topic: str, ledger: Ledger, timeout_s: float) -> Topic:
    """Read until every answered id was seen and every killed epoch is closed, or time is up.

    What is missing at the end is for `problems` to say.
    """
    reader = TopicReader(bootstrap, topic, ledger)
    try:
        reader.assign()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            reader.read_for(0.5)
            if not reader.found.lacks() and not _unclosed(reader.found):
                break
        return reader.found
    finally:
        reader.close()


def _unclosed(found: Topic) -> list[str]:
    """Epochs that a later epoch of the same source followed, and that nobody closed."""
    newest: dict[str, str] = {}
    for stream in sorted(found.next_seq):
        newest[stream.partition("-")[0]] = stream
    return [s for s in found.next_seq if s not in newest.values() and s not in found.closed]


def union(gaps: list[tuple[int, int, str]], end: int) -> list[tuple[int, int]]:
    """Gaps as ranges that do not overlap, below `end`; what retention took is no gap to who had read it."""
    ranges: list[tuple[int, int]] = []
    for start, last, cause in sorted(gaps):
        if cause == "retention":
            continue
        if ranges and start <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], last))
        else:
            ranges.append((start, last))
    return [(start, min(last, end - 1)) for start, last in ranges if start < end]


def _size(ranges: list[tuple[int, int]]) -> int:
    return sum(last + 1 - start for start, last in ranges)


def _covered(hole: tuple[int, int], ranges: list[tuple[int, int]]) -> bool:
    """Whether gaps hold every number of a hole."""
    return any(start <= hole[0] and hole[1] <= last for start, last in ranges)


def problems(ledger: Ledger, found: Topic) -> list[str]:
    """Every way in which ledger and topic disagree, as sentences; empty when the promise held."""
    return [
        *ledger.wrong,
        *found.others,
        *_answers(ledger, found),
        *_numbers(found),
        *_tensors(ledger, found),
    ]


def _answers(ledger: Ledger, found: Topic) -> list[str]:
    said = []
    missing = [one for one in ledger.answered if not found.has(one[0], one[1])]
    if missing:
        few = ", ".join(f"{stream}-{seq:016x} (q-{number})" for stream, seq, number in sorted(missing)[:5])
        said.append(f"{len(missing)} of {len(ledger.answered)} answered are not in the topic: {few}")
    untold = [
        one
        for one in ledger.unlogged
        if not found.has(one[0], one[1])
        and not _covered((one[1], one[1]), union(found.gaps.get(one[0], []), OPEN_END))
    ]
    if untold:
        stream, seq, number = untold[0]
        few = f"{stream}-{seq:016x} (q-{number})"
        said.append(f"{len(untold)} answered unlogged have neither record nor gap, as {few}")
    twice = [number for number, times in enumerate(found.seen) if times > 1]
    if twice:
        said.append(f"{len(twice)} requests have more than one record: q-{', q-'.join(map(str, twice[:5]))}")
    return said


def _numbers(found: Topic) -> list[str]:
    """Epoch by epoch: every number that was drawn has one record, or stands in a gap, and none has both."""
    said = []
    for stream, partitions in found.partitions.items():
        if len(partitions) > 1:
            said.append(f"epoch {stream} is on partitions {sorted(partitions)}")
    for stream, holes in found.holes.items():
        ranges = union(found.gaps.get(stream, []), OPEN_END)
        said.extend(
            f"epoch {stream}: numbers {hole[0]}..{hole[1]} have neither event nor gap"
            for hole in holes
            if not _covered(hole, ranges)
        )
    for stream, (drawn, cause) in found.closed.items():
        records = found.next_seq.get(stream, 0) - _size(found.holes.get(stream, []))
        gaps = _size(union(found.gaps.get(stream, []), drawn if cause == "host_loss" else OPEN_END))
        if records + gaps != drawn:
            said.append(f"epoch {stream}: {drawn} numbers drawn, {records} records and {gaps} in gaps")
    said.extend(f"epoch {stream} was followed and never closed" for stream in _unclosed(found))
    return said


def _tensors(ledger: Ledger, found: Topic) -> list[str]:
    said = []
    for identity, sampled in ledger.sampled.items():
        logged = found.sampled.get(identity)
        if logged is not None and logged != sampled:
            sides = [s for s in ("sent", "answered") if getattr(logged, s) != getattr(sampled, s)]
            said.append(f"{identity}: tensors {' and '.join(sides)} differ from the logged ones")
    return said
