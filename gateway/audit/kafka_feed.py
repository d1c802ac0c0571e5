"""The topic as a feed: what consumers on any host read. See `gateway.audit.feed` for the guarantees.

aiokafka's consumer is asynchronous, a feed is not.

* Alone, a feed reads all partitions. Its event loop moves only inside `read`. Besides the marks per (source, epoch),
  `positions` holds a "kafka/<partition>" offset each, so that a resumed feed does not read the topic from its
  beginning; a consumer keeps them together with its own state.
* With a `group` it reads what the group gives it, and the brokers keep its positions (`commit`). Heartbeats need a loop
  that always runs: it has a thread of its own.

Records are decoded in the consumer's thread either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from aiokafka.structs import ConsumerRecord

from gateway.audit.event import Event
from gateway.audit.feed import (
    RETENTION,
    UNREADABLE,
    Delivery,
    HighWater,
    Hole,
    Positions,
    Skipped,
    Unreadable,
)
from gateway.audit.identity import parse_event_id
from gateway.audit.kafka_group import GroupReader, Taken, marks_text
from gateway.audit.legible import NO_EVENT, Refusal, read_record
from gateway.audit.topic_reader import STALL_S, Batch, TopicReader, Wanted

log = logging.getLogger("tidegate.feed")

SESSION_MS = 10_000
"""A group's member that says nothing for this long has left it."""
_OFFSET = "kafka/"
_KEY_CHARS, _ID_CHARS = 25, 42
_JOIN_S = 10.0


class KafkaFeed:
    """Reads one topic, from the beginning, from a time, from where `positions` stand or from where a group stands.

    Args:
        bootstrap_servers: host:port, comma-separated.
        positions: where to go on; not with a group, which has its own.
        group: the consumer group's name.
        since_ns: where partitions without a position begin: at the first record that is not older. By the records' own
            times, if the topic has CreateTime, as the forwarder makes it; else by when brokers took them.
        stall_s: when nothing comes for so long although there is more, the consumer is made anew.
        arguments: of the client (`gateway.audit.brokers.client_arguments`), where brokers want a user or TLS.

    Raises:
        FeedUnreachable: no broker answers, or the topic does not exist.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        positions: Positions | None = None,
        *,
        group: str | None = None,
        since_ns: int | None = None,
        stall_s: float = STALL_S,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        given = dict(positions or {})
        wanted = Wanted(bootstrap_servers, topic, since_ns, stall_s, group, SESSION_MS, arguments or {})
        self._since_ns = since_ns
        self._lock = threading.Lock()
        """Over what a rebalance takes away: all below, as far as it is by partition."""
        self._offsets = {int(k[len(_OFFSET) :]): v for k, v in given.items() if k.startswith(_OFFSET)}
        """Behind what was returned, by partition."""
        self._marks: dict[int, HighWater] = {}
        """By partition; alone all have the same one."""
        self._whole = HighWater({k: v for k, v in given.items() if not k.startswith(_OFFSET)}, since_ns)
        self._jumped: dict[int, Positions] = {}
        """Marks as they stood when a partition went on behind what retention took."""
        self._committed: dict[int, int] = {}
        self._moved: dict[int, Positions] = {}
        """By partition of a group: marks as committed last, what moved last behind the others."""
        self._assignment = 0
        self._forfeited = False
        """Whether something was returned, not committed, and handed over."""
        self._unreadable = Unreadable()
        self._reader = TopicReader(wanted, self._offsets)
        if group is not None:
            self._reader = GroupReader(wanted, self._take_over, self._hand_over)
        self._loop = _Loop(threaded=group is not None)
        try:
            self._loop.run(self._reader.start())
        except BaseException:
            self._loop.close()
            raise

    @property
    def positions(self) -> Positions:
        """Behind everything returned so far; of a group's member, in the partitions that are its own now."""
        with self._lock:
            marks = [self._whole, *self._marks.values()]
            merged = {key: seq for one in marks for key, seq in one.positions.items()}
            return {**merged, **{f"{_OFFSET}{number}": at for number, at in self._offsets.items()}}

    def ends(self) -> Positions:
        """Behind what the topic holds now, of partitions that were not read to there; a group's member is waited for
        until it knows which are its own, 30 s at most.

        Raises:
            FeedUnreachable: no broker answers.
        """
        found = self._loop.run(self._reader.ends())
        return {f"{_OFFSET}{number}": end for number, end in found.items()}

    @property
    def unreadable(self) -> int:
        """Records that could not be read."""
        return self._unreadable.count

    @property
    def remade(self) -> int:
        """How often a consumer that was stuck was made anew."""
        return self._reader.remade

    def read(self, max_events: int, wait_ms: int) -> Delivery:
        """Events in order within each epoch, each once.

        Raises:
            FeedUnreachable: the topic, or the group, may not be read.
        """
        self._set_busy(False)
        deadline_s = time.monotonic() + wait_ms / 1000
        while True:
            left_ms = max(int((deadline_s - time.monotonic()) * 1000), 0)
            if not self._reader.held:
                self._loop.run(self._reader.turn(max_events, left_ms))
            delivery = self._taken()
            # A batch of nothing but doubles is not the end.
            if delivery.events or delivery.holes or delivery.skipped or not left_ms:
                return delivery

    def commit(self) -> bool:
        """Let the group's position be behind everything returned so far: call it once the side effect is done.

        Returns:
            False when it was not committed, because partitions are another member's now or no broker answers: what was
            returned since the last commit then comes again, here or there.

        Raises:
            ValueError: the feed reads alone; its consumer keeps `positions`.
        """
        reader = self._reader
        if not isinstance(reader, GroupReader):
            msg = "a feed without a group has nothing to commit to: keep its positions"
            raise ValueError(msg)  # noqa: TRY004
        with self._lock:
            assignment = self._assignment
            moved = {n: at for n, at in self._offsets.items() if self._committed.get(n) != at}
            places = {number: (at, marks_text(self._ordered(number))) for number, at in moved.items()}
        why = self._loop.run(reader.commit(places, assignment)) if places else None
        with self._lock:
            if why is None and assignment == self._assignment:
                self._committed.update(moved)
            forfeited, self._forfeited = self._forfeited, False
        self._set_busy(False)
        if why is not None:
            log.warning("not_committed", extra={"why": why, "meanwhile": "what was read since comes again"})
        return why is None and not forfeited

    def close(self) -> None:
        """Leave the brokers, and the group; what was not committed comes again."""
        if self._loop.is_closed:
            return
        with contextlib.suppress(Exception):
            self._loop.run(self._reader.stop())
        self._loop.close()

    def _set_busy(self, busy: bool) -> None:
        if isinstance(self._reader, GroupReader):
            self._reader.is_busy = busy

    def _ordered(self, number: int) -> Positions:
        """A partition's marks, those last that moved since the last commit."""
        marks, before = self._marks[number].positions, self._moved.get(number, {})
        still = {key: seq for key, seq in before.items() if marks.get(key) == seq}
        self._moved[number] = {**still, **{k: v for k, v in marks.items() if still.get(k) != v}}
        return self._moved[number]

    def _taken(self) -> Delivery:
        delivery = Delivery([], [], [])
        while True:
            with self._lock:
                try:
                    found = self._reader.held.popleft()
                except IndexError:
                    break
                if isinstance(found, Skipped):
                    self._jump(found, delivery)
                elif found.assignment == self._assignment:
                    self._take(found, delivery)
                if delivery.events:
                    self._set_busy(True)
        return delivery

    def _jump(self, skipped: Skipped, delivery: Delivery) -> None:
        number = skipped.partition
        delivery.skipped.append(skipped)  # type: ignore[attr-defined]
        self._offsets[number] = skipped.to_offset + 1
        self._jumped[number] = dict(self._marks.get(number, self._whole).positions)

    def _take(self, batch: Batch, delivery: Delivery) -> None:
        number = batch.partition
        marks = self._marks.get(number, self._whole)
        if number not in self._offsets and batch.records[0].offset and self._since_ns is None:
            self._jumped[number] = dict(marks.positions)
        for record in batch.records:
            event = read_record(record.value)
            try:
                key, seq = _number_of(event, record, marks)
            except ValueError:
                # Not ours. If it was, a later event shows its number as a hole.
                self._unreadable.note(NO_EVENT.what, f"partition {number}, offset {record.offset}")
                continue
            new, hole = marks.admit_id(key, seq)
            if hole is not None:
                delivery.holes.append(self._caused(number, key, hole))
            if not new:
                continue
            if isinstance(event, Refusal):
                self._unreadable.note(event.what, f"{key}-{seq:016x}")
                if event.is_hole:
                    delivery.holes.append(Hole(int(key[:16], 16), int(key[17:], 16), seq, seq, UNREADABLE))
            else:
                delivery.events.append(event)
        self._offsets[number] = batch.records[-1].offset + 1

    def _caused(self, number: int, key: str, hole: Hole) -> Hole:
        """The first that is seen of an epoch since the partition went on behind what retention took."""
        before = self._jumped.get(number)
        if before is not None and hole.from_seq == before.get(key, 0):
            return hole._replace(cause=RETENTION)
        return hole

    # --- in the loop's thread --------------------------------------------------------------

    def _take_over(self, taken: dict[int, Taken], assignment: int) -> None:
        with self._lock:
            self._assignment = assignment
            for number, one in taken.items():
                since_ns = self._since_ns if one.is_fresh else None
                self._marks[number] = HighWater(one.marks, since_ns, is_part=one.is_part)
                self._moved[number] = dict(one.marks)
                if not one.is_fresh:
                    self._offsets[number] = self._committed[number] = one.offset

    def _hand_over(self, lost: Iterable[int]) -> None:
        """Positions go with their partitions; what is read of them and not committed is read again by others."""
        with self._lock:
            self._assignment = -1
            for number in lost:
                at, committed = self._offsets.get(number, 0), self._committed.get(number, 0)
                if at > committed:
                    self._forfeited = True
                    what = {"partition": number, "from_offset": committed, "to_offset": at - 1}
                    log.warning("read_and_not_committed", extra={**what, "meanwhile": "it comes again"})
            for known in (self._offsets, self._marks, self._jumped, self._committed, self._moved):
                known.clear()  # type: ignore[attr-defined]


def _number_of(event: Event | Refusal, record: ConsumerRecord, marks: HighWater) -> tuple[str, int]:
    """The epoch's key and the number in it.

    Raises:
        ValueError: there is none.
    """
    event_id = (record.key or b"").decode() if isinstance(event, Refusal) else event.id
    key = event_id[:_KEY_CHARS]
    if len(event_id) != _ID_CHARS or key not in marks.positions:
        parse_event_id(event_id)
    return key, int(event_id[_KEY_CHARS + 1 :], 16)


class _Loop:
    """An event loop that moves when asked, or always, in a thread of its own."""

    def __init__(self, *, threaded: bool) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._loop.run_forever, name="kafka-group", daemon=True)
            self._thread.start()

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._loop.is_closed()

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Run to its end; an interrupt leaves it running where the loop always does."""
        if self._thread is None:
            return self._loop.run_until_complete(what)
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def close(self) -> None:
        """End whatever still runs, and the loop."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self.run(_end_others())
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_JOIN_S)
        self._loop.close()


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=1)
