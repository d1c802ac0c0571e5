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

from tests.e2e.ledger import Ledger, Sampled


@dataclass
class Topic:
    """What a foreign reader found, behind one high-water mark per (source, epoch)."""

    ids: set[str] = field(default_factory=set)
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

    def take(self, event: dict[str, Any], partition: int, wanted: dict[str, Sampled]) -> None:
        """Fold one record in."""
        identity: str = event["id"]
        stream, _, number = identity.rpartition("-")
        seq = int(number, 16)
        expected = self.next_seq.get(stream, 0)
        self.partitions[stream].add(partition)
        if seq < expected:
            self.resent += 1
            return
        if seq > expected:
            self.holes[stream].append((expected, seq - 1))
        self.next_seq[stream] = seq + 1
        self.events += 1
        self.ids.add(identity)
        kind = event["type"]
        self.types[f"{kind}.{event['kind']}"] += 1
        if kind == "gap" and event["cause"] == "retention":
            # Left a spool, which says nothing of the topic: its records are here.
            return
        if kind == "gap":
            of = f"{event['source']}-{event['epoch']:08x}"
            to_seq = event["to_seq"] if event["to_seq"] is not None else 2**63
            self.gaps[of].append((event["from_seq"], to_seq, event["cause"]))
        elif kind == "epoch_close":
            self.closed[f"{event['source']}-{event['epoch']:08x}"] = (
                event["events"],
                event["cause"],
            )
        elif kind == "epoch_open":
            self.roles[stream] = event["role"]
        elif kind == "prediction" and identity in wanted:
            self.sampled[identity] = Sampled(
                *(
                    hashlib.sha256(b"".join(t["data"] for t in event[side])).hexdigest()
                    for side in ("inputs", "outputs")
                )
            )


class TopicReader:
    """Reads the whole topic from its beginning, again and again to its end; knows only Kafka."""

    def __init__(self, bootstrap: str, topic: str, wanted: dict[str, Sampled]) -> None:
        self.found = Topic()
        self._topic = topic
        self._wanted = wanted
        self._decoder = msgspec.msgpack.Decoder()  # untyped: plain maps
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"foreign-{time.monotonic_ns()}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_uncommitted",
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
                self.found.take(event, message.partition(), self._wanted)
                count += 1
        return count

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def read_topic(bootstrap: str, topic: str, ledger: Ledger, timeout_s: float) -> Topic:
    """Read until every answered id was seen and every killed epoch is closed, or time is up.

    What is missing at the end is for `problems` to say.
    """
    reader = TopicReader(bootstrap, topic, ledger.sampled)
    try:
        reader.assign()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            reader.read_for(0.5)
            if ledger.answered.keys() <= reader.found.ids and not _unclosed(reader.found):
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


def _covered(hole: tuple[int, int], gaps: list[tuple[int, int, str]]) -> bool:
    """Whether gaps together hold every number of a hole."""
    at = hole[0]
    for start, end, _ in sorted(gaps):
        if start <= at <= end:
            at = end + 1
    return at > hole[1]


def problems(ledger: Ledger, found: Topic) -> list[str]:
    """Every way in which ledger and topic disagree, as sentences; empty when the promise held."""
    said = list(ledger.wrong)
    missing = ledger.answered.keys() - found.ids
    if missing:
        few = ", ".join(f"{i} ({ledger.answered[i]})" for i in sorted(missing)[:5])
        said.append(f"{len(missing)} of {len(ledger.answered)} answered are not in the topic: {few}")
    for stream, partitions in found.partitions.items():
        if len(partitions) > 1:
            said.append(f"epoch {stream} is on partitions {sorted(partitions)}")
    for stream, holes in found.holes.items():
        said.extend(
            f"epoch {stream}: numbers {hole[0]}..{hole[1]} have neither event nor gap"
            for hole in holes
            if not _covered(hole, found.gaps[stream])
        )
    for stream, (drawn, cause) in found.closed.items():
        end = max([found.next_seq.get(stream, 0), *(g[1] + 1 for g in found.gaps[stream])])
        if cause != "host_loss" and end != drawn:
            said.append(f"epoch {stream}: {drawn} numbers drawn, events and gaps end at {end}")
    said.extend(f"epoch {stream} was followed and never closed" for stream in _unclosed(found))
    for identity, sampled in ledger.sampled.items():
        logged = found.sampled.get(identity)
        if logged is not None and logged != sampled:
            sides = [s for s in ("sent", "answered") if getattr(logged, s) != getattr(sampled, s)]
            said.append(f"{identity}: tensors {' and '.join(sides)} differ from the logged ones")
    return said
