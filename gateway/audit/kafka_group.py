"""A member of a consumer group: which partitions are its own, and how far it got. Under a `KafkaFeed` with a group.

A position is committed with the marks of the partition's epochs, so that whoever takes it over drops the same doubles
and finds the same holes. Before partitions are handed over, a consumer that works on what it read may finish and
commit.

**Zombies.** A member that was away for longer than its session (stopped, or its host asleep) is no member any more, and
its partitions are another's. aiokafka would commit for it all the same: after a rejoin by retries of an old commit
under the new membership, and before one as nobody, which brokers allow once a group is empty. So commits are made here,
one attempt each, and only under the very membership that the records were read under.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import (
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from gateway.audit.feed import Positions
from gateway.audit.topic_reader import TopicReader, Wanted

log = logging.getLogger("tidegate.feed")

METADATA_BYTES = 4096
"""Of a committed position, as brokers take it by default (offset.metadata.max.bytes)."""
GRACE_S = 2.0
"""A consumer that works on what it read may commit it before its partitions are handed over."""
COMMIT_S = 5.0
_POLL_S = 0.01
_MARK = struct.Struct("<QIQ")
_WHOLE, _PART = "1", "1+"
"""First line of the metadata: the marks below it are all there were, or the ones that moved last."""
_MOVED = (UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError)


class Taken(NamedTuple):
    """A partition that became this member's."""

    offset: int
    marks: Positions
    is_part: bool
    """Whether `marks` are not all there were."""
    is_fresh: bool
    """Whether the group had no position there."""


def marks_text(marks: Positions, limit_bytes: int = METADATA_BYTES) -> str:
    """Marks as a position's metadata; where not all fit, those that stand last in `marks`."""
    fit = (limit_bytes - len(_PART) - 1) * 3 // 4 // _MARK.size
    chosen = list(marks.items())[-fit:]
    packed = b"".join(_MARK.pack(int(key[:16], 16), int(key[17:], 16), seq) for key, seq in chosen)
    return f"{_WHOLE if len(chosen) == len(marks) else _PART}\n{base64.b64encode(packed).decode()}"


def marks_of(text: str) -> tuple[Positions, bool]:
    """Marks from a position's metadata, and whether they are only a part; what others wrote there holds none."""
    head, _, packed = text.partition("\n")
    try:
        content = base64.b64decode(packed, validate=True)
        if head not in (_WHOLE, _PART) or len(content) % _MARK.size:
            return {}, True
    except ValueError:
        return {}, True
    marks = {f"{source:016x}-{epoch:08x}": seq for source, epoch, seq in _MARK.iter_unpack(content)}
    return marks, head == _PART


class GroupReader(TopicReader):
    """Reads the partitions that the group gives to this member.

    Args:
        on_taken: called with what became its own, and the assignment's number.
        on_lost: called with what is its own no more.

    Threading: as `TopicReader`, on a loop that always runs (heartbeats). `is_busy` is set by the consumer's thread.
    """

    def __init__(
        self,
        wanted: Wanted,
        on_taken: Callable[[dict[int, Taken], int], None],
        on_lost: Callable[[Iterable[int]], None],
    ) -> None:
        super().__init__(wanted, {})
        self._on_taken = on_taken
        self._on_lost = on_lost
        self.is_busy = False
        """What was read last is neither committed nor given up."""
        self._generation = -1
        self._settled = False
        self._life = 0

    @property
    def is_settled(self) -> bool:
        """Whether the group said which partitions are its own, if any."""
        return self._settled

    async def commit(self, positions: dict[int, tuple[int, str]], assignment: int) -> str | None:
        """Commit positions with their metadata, read under that assignment; None when done, else why not."""
        if self.consumer is None:
            return "the consumer is being made anew"
        coordinator = self.consumer._coordinator  # noqa: SLF001
        wanted = {self.tp(number): OffsetAndMetadata(*place) for number, place in positions.items()}
        try:
            async with asyncio.timeout(COMMIT_S):
                while True:
                    await coordinator.ensure_coordinator_known()
                    async with coordinator._commit_lock:  # noqa: SLF001
                        # From here to the request there is no turn of the loop.
                        if assignment != self.assignment or coordinator.generation != self._generation:
                            return "its partitions are handed over"
                        try:
                            await coordinator._do_commit_offsets(None, wanted)  # noqa: SLF001
                            return None
                        except _MOVED as exc:
                            return type(exc).__name__
                        except KafkaError as exc:
                            if not exc.retriable:
                                return f"{type(exc).__name__}: {str(exc)[:200]}"
                    await asyncio.sleep(_POLL_S * 10)
        except TimeoutError:
            return "no answer"

    async def _take_partitions(self, consumer: AIOKafkaConsumer) -> None:
        """Join; the group says which are its own when it has settled."""
        self._life += 1
        self._settled = False
        consumer.subscribe([self.wanted.topic], listener=_Listener(self, consumer, self._life))

    async def _follow(self) -> None:
        """The group does."""

    def let_go(self) -> None:
        """Of a consumer that is given up nothing is kept: another member may have its partitions already."""
        self._life += 1
        self._drop()

    async def revoked(self, consumer: AIOKafkaConsumer, life: int) -> None:
        """Partitions are about to be handed over."""
        if life != self._life:
            return
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + GRACE_S
        coordinator = consumer._coordinator  # noqa: SLF001
        # A member that was put out of the group has nothing to wait for.
        while self.is_busy and coordinator.generation == self._generation and loop.time() < deadline_s:
            await asyncio.sleep(_POLL_S)
        if life == self._life:
            self._drop()

    def _drop(self) -> None:
        self._settled = False
        lost, self.owned = self.owned, frozenset()
        self.assignment += 1
        self.held.clear()
        self.next_offsets.clear()
        self._on_lost(lost)

    async def assigned(self, consumer: AIOKafkaConsumer, life: int, tps: set[TopicPartition]) -> None:
        """Partitions became its own: find where the group stands in them."""
        coordinator = consumer._coordinator  # noqa: SLF001
        generation = coordinator.generation
        committed = await coordinator.fetch_committed_offsets(list(tps))
        fresh = await self.first_offsets(consumer, [tp.partition for tp in tps if tp not in committed])
        ends = await consumer.end_offsets(list(tps)) if tps else {}
        if life != self._life:
            return
        taken: dict[int, Taken] = {}
        for tp in tps:
            number = tp.partition
            if tp not in committed:
                taken[number] = Taken(fresh[number], {}, False, True)
                continue
            offset, metadata = committed[tp]
            taken[number] = Taken(offset, *marks_of(metadata or ""), False)
            if offset < ends[tp]:
                what = {"partition": number, "from_offset": offset, "to_offset": ends[tp] - 1}
                log.info("may_have_been_read_before", extra=what)
        # No turn of the loop from here on: a fetch sees all of it or nothing.
        self._generation = generation
        self.assignment += 1
        self.next_offsets = {number: one.offset for number, one in taken.items()}
        self.owned = frozenset(taken)
        self._on_taken(taken, self.assignment)
        for tp in tps:
            consumer.seek(tp, taken[tp.partition].offset)
        self._settled = True


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Hands a consumer's rebalances to its reader. One that fails leaves it unsettled, which the watchdog sees."""

    def __init__(self, reader: GroupReader, consumer: AIOKafkaConsumer, life: int) -> None:
        self._reader, self._consumer, self._life = reader, consumer, life

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """See `GroupReader.revoked`."""
        await self._reader.revoked(self._consumer, self._life)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """See `GroupReader.assigned`."""
        await self._reader.assigned(self._consumer, self._life, set(assigned))
