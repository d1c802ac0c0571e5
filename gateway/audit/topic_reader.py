"""One topic, read on an event loop: the consumer's life under a `KafkaFeed`. Between the brokers and the feed.

aiokafka's own ways of placing a consumer are not used: positions are set here, and where the brokers do not have one
any more that is told (`Skipped`) and reading goes on at the oldest record there is. Whatever a fetch raises, reading
goes on at what was fetched last: an error takes the records beside it along.

**Watchdog.** A consumer can be stuck without a word (aiokafka #1154: its fetching task is dead or waits for ever). When
nothing came for `stall_s` although the end of a partition is beyond what was fetched, or no end can be learnt at all,
it is abandoned and a new one goes on at the same positions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from aiokafka.structs import ConsumerRecord, TopicPartition

from gateway.audit.feed import Skipped
from gateway.errors import FeedUnreachable

log = logging.getLogger("tidegate.feed")

METADATA_AGE_MS = 30_000
"""Partitions that were added to the topic are found within."""
REQUEST_TIMEOUT_MS = 15_000
STALL_S = 30.0
_VISIBLE_S = 1.0
_ANSWER_S = 15.0
_SETTLE_S = 30.0
_STOP_S = 2.0
_PAUSE_S = 0.1
"""After an error."""
_REFUSED = (TopicAuthorizationFailedError, GroupAuthorizationFailedError)


class Wanted(NamedTuple):
    """What is read, and how."""

    bootstrap_servers: str
    topic: str
    since_ns: int | None = None
    """Where partitions without a position begin: None at their oldest record."""
    stall_s: float = STALL_S
    group: str | None = None
    session_ms: int = 10_000
    arguments: Mapping[str, Any] = {}
    """More of the client's (`gateway.audit.brokers.client_arguments`), where brokers want a user or TLS."""


class Batch(NamedTuple):
    """Records of a partition as they were fetched; `assignment` says which one they belong to."""

    partition: int
    assignment: int
    records: list[ConsumerRecord]


def consumer_arguments(wanted: Wanted) -> dict[str, Any]:
    """Arguments of every consumer that follows a topic; one look at it has its own (`topic_look`)."""
    made: dict[str, Any] = {
        "bootstrap_servers": wanted.bootstrap_servers,
        **wanted.arguments,
        "enable_auto_commit": False,
        # Where there is no position, one is set; where one is gone, that is told first.
        "auto_offset_reset": "none",
        "fetch_max_wait_ms": 100,
        "max_partition_fetch_bytes": 4 * 1024 * 1024,
        "metadata_max_age_ms": METADATA_AGE_MS,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
    }
    if wanted.group is not None:
        made |= {
            "group_id": wanted.group,
            "session_timeout_ms": wanted.session_ms,
            "heartbeat_interval_ms": max(wanted.session_ms // 10, 50),
        }
    return made


class TopicReader:
    """Reads all partitions of a topic, or those of a group's member (`gateway.audit.kafka_group`).

    Args:
        next_offsets: where to go on, by partition.

    Threading: one event loop; `held` may be emptied by another thread.
    """

    def __init__(self, wanted: Wanted, next_offsets: dict[int, int]) -> None:
        self.wanted = wanted
        self.next_offsets = dict(next_offsets)
        """Behind what was fetched."""
        self.owned: frozenset[int] = frozenset()
        self.assignment = 0
        """Counts: what was fetched under an earlier one is nobody's."""
        self.held: deque[Batch | Skipped] = deque()
        """Fetched, in order, and not taken yet."""
        self.consumer: AIOKafkaConsumer = None
        self.remade = 0
        """How often the watchdog gave up a consumer."""
        self._silent_s = 0.0
        """How long has been waited without a record."""
        self._tending: asyncio.Task[None] | None = None
        """The watchdog at work; nothing is fetched meanwhile."""
        self._told: set[str] = set()

    async def start(self) -> None:
        """Connect and take the partitions.

        Raises:
            FeedUnreachable: no broker answers, the topic is not there or may not be read.
        """
        where = self.wanted.bootstrap_servers
        consumer = self.make()
        try:
            async with asyncio.timeout(_ANSWER_S):
                await consumer.start()
                await self._await_topic(consumer)
                await self._take_partitions(consumer)
        except (KafkaError, TimeoutError) as exc:
            await abandon(consumer)
            msg = f"Kafka at {where} cannot be read: {type(exc).__name__}"
            raise FeedUnreachable(msg) from exc
        except BaseException:
            await abandon(consumer)
            raise
        self.consumer = consumer

    def make(self) -> AIOKafkaConsumer:
        """A consumer that is not started. Tests give one that is stuck."""
        return AIOKafkaConsumer(**consumer_arguments(self.wanted))

    async def turn(self, max_records: int, wait_ms: int) -> None:
        """Fetch once, into `held`.

        Raises:
            FeedUnreachable: the topic, or the group, may not be read.
        """
        loop = asyncio.get_running_loop()
        if self._tending is not None:
            # However long brokers take to say nothing, a reader is not held up.
            await asyncio.wait({self._tending}, timeout=max(wait_ms / 1000, _PAUSE_S / 10))
            if self._tending.done():
                tended, self._tending = self._tending, None
                tended.result()
            return
        started_s = loop.time()
        fetched: dict[TopicPartition, list[ConsumerRecord]] = {}
        failed = False
        try:
            await self._follow()
            # While a group is settled anew a fetch waits for it, however long.
            async with asyncio.timeout(wait_ms / 1000 + _PAUSE_S):
                fetched = await self.consumer.getmany(timeout_ms=wait_ms, max_records=max_records)
        except TimeoutError:
            pass
        except OffsetOutOfRangeError as exc:
            await self._go_on_at_oldest(exc.args[0])
            return
        except NoOffsetForPartitionError:
            # Assigned a moment ago; its position is being set.
            return
        except _REFUSED as exc:
            msg = f"topic {self.wanted.topic} may not be read: {type(exc).__name__}"
            raise FeedUnreachable(msg) from exc
        except KafkaError as exc:
            self._tell("fetch_failed", f"{type(exc).__name__}: {str(exc)[:200]}")
            self._place(self.owned)
            failed = True
            await asyncio.sleep(_PAUSE_S)
        if not self._hold(fetched):
            self._silent_s += loop.time() - started_s
            if self._silent_s >= self.wanted.stall_s:
                self._silent_s = 0.0
                self._tending = asyncio.create_task(self._watch(failed=failed))

    def _hold(self, fetched: dict[TopicPartition, list[ConsumerRecord]]) -> bool:
        """Keep what was fetched of owned partitions; whether there was any."""
        found = False
        for tp, records in fetched.items():
            if tp.partition in self.owned and records:
                found = True
                self.next_offsets[tp.partition] = records[-1].offset + 1
                self.held.append(Batch(tp.partition, self.assignment, records))
        if found:
            self._silent_s = 0.0
            if self._told:
                self._told.clear()
                log.info("topic_is_read_again", extra={"topic": self.wanted.topic})
        return found

    async def ends(self) -> dict[int, int]:
        """The end of each partition that was not fetched to there.

        Raises:
            FeedUnreachable: no broker answers.
        """
        try:
            async with asyncio.timeout(_SETTLE_S):
                while not self.is_settled or self.consumer is None:
                    await asyncio.sleep(_PAUSE_S / 10)
                ends = await self.consumer.end_offsets([self.tp(number) for number in self.owned])
        except (KafkaError, TimeoutError) as exc:
            msg = f"Kafka at {self.wanted.bootstrap_servers} cannot be read: {type(exc).__name__}"
            raise FeedUnreachable(msg) from exc
        at = self.next_offsets
        return {tp.partition: end for tp, end in ends.items() if end > at.get(tp.partition, 0)}

    async def stop(self) -> None:
        """Leave the brokers; takes a few seconds at most."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait({self._tending}, timeout=_STOP_S)
        if self.consumer is not None:
            await abandon(self.consumer)

    # --- partitions ------------------------------------------------------------------------

    async def _await_topic(self, consumer: AIOKafkaConsumer) -> None:
        """A topic made just now may take a moment."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _VISIBLE_S
        while self.wanted.topic not in await consumer.topics():
            if loop.time() > deadline_s:
                msg = f"topic {self.wanted.topic} is not there"
                raise FeedUnreachable(msg)
            await asyncio.sleep(0.1)

    async def _take_partitions(self, consumer: AIOKafkaConsumer) -> None:
        """All of them, also those that come later."""
        # One partition makes the client ask for the topic's metadata, which tells the others.
        consumer.assign([TopicPartition(self.wanted.topic, 0)])
        while not (found := consumer.partitions_for_topic(self.wanted.topic)):
            await asyncio.sleep(0.005)
        await self._assign(consumer, found | self.owned)

    async def _follow(self) -> None:
        """Read partitions that were added, too."""
        found = self.consumer.partitions_for_topic(self.wanted.topic) or set()
        if not found <= self.owned:
            await self._assign(self.consumer, found | self.owned)

    async def _assign(self, consumer: AIOKafkaConsumer, partitions: Set[int]) -> None:
        """Assigned by hand and placed at once: what aiokafka assigns by itself begins at the start again."""
        consumer.assign([self.tp(number) for number in sorted(partitions)])
        fresh = partitions - self.next_offsets.keys()
        self.next_offsets.update(await self.first_offsets(consumer, fresh))
        self.owned = frozenset(partitions)
        self._place(partitions, consumer)

    def tp(self, partition: int) -> TopicPartition:
        """A partition as the client names it."""
        return TopicPartition(self.wanted.topic, partition)

    async def first_offsets(self, consumer: AIOKafkaConsumer, partitions: Iterable[int]) -> dict[int, int]:
        """Where partitions without a position begin."""
        tps = [self.tp(partition) for partition in partitions]
        if not tps:
            return {}
        since_ns = self.wanted.since_ns
        if since_ns is None:
            return {tp.partition: offset for tp, offset in (await consumer.beginning_offsets(tps)).items()}
        # Asked first: what comes in between is read.
        ends = await consumer.end_offsets(tps)
        found = await consumer.offsets_for_times(dict.fromkeys(tps, max(since_ns // 1_000_000, 0)))
        return {tp.partition: at.offset if (at := found.get(tp)) is not None else ends[tp] for tp in tps}

    def _place(self, partitions: Iterable[int], consumer: AIOKafkaConsumer | None = None) -> None:
        """Go on at what was fetched last."""
        for partition in partitions:
            with contextlib.suppress(KafkaError):
                (consumer or self.consumer).seek(self.tp(partition), self.next_offsets[partition])

    async def _go_on_at_oldest(self, out_of_range: dict[TopicPartition, int]) -> None:
        """The brokers have no record at these offsets (any more): say which are passed over."""
        try:
            oldest = await self.consumer.beginning_offsets(list(out_of_range))
        except KafkaError:
            # The next fetch tells it again.
            return
        for tp, wanted in out_of_range.items():
            if tp.partition not in self.owned or self.next_offsets.get(tp.partition) != wanted:
                continue
            first = oldest[tp]
            if first > wanted:
                self.held.append(Skipped(tp.partition, wanted, first - 1))
                what = {"from_offset": wanted, "to_offset": first - 1}
                log.warning("records_gone", extra={"partition": tp.partition, **what, "cause": "retention"})
            elif first < wanted:
                # Made anew, or cut by an unclean election: what was seen is dropped by its numbers.
                what = {"position": wanted, "goes_on_at": first}
                log.warning("topic_is_shorter", extra={"partition": tp.partition, **what})
            self.next_offsets[tp.partition] = first
            self.consumer.seek(tp, first)

    # --- watchdog --------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether it is known which partitions are this reader's."""
        return True

    async def _watch(self, *, failed: bool) -> None:
        """Nothing came for long: is there something?"""
        if failed or not self.is_settled:
            await self._anew("fetches fail" if failed else "the group gives it no partitions")
            return
        tps = [self.tp(partition) for partition in self.owned]
        try:
            async with asyncio.timeout(min(self.wanted.stall_s, _ANSWER_S)):
                ends = await self.consumer.end_offsets(tps)
                behind = [tp.partition for tp in tps if ends[tp] > await self.consumer.position(tp)]
        except (KafkaError, TimeoutError, OSError) as exc:
            await self._anew(f"no answer: {type(exc).__name__}")
            return
        if behind:
            await self._anew(f"nothing came of partitions {sorted(behind)}, which hold more")

    async def _anew(self, why: str) -> None:
        """Give this consumer up; a new one goes on where it stands, as soon as one starts."""
        self._tell("consumer_made_anew", why)
        stuck, self.consumer = self.consumer, None
        self.remade += 1
        self.let_go()
        await abandon(stuck)
        while self.consumer is None:
            try:
                await self.start()
            except FeedUnreachable as exc:
                self._tell("kafka_not_reachable", str(exc))
                await asyncio.sleep(min(1.0, self.wanted.stall_s))

    def let_go(self) -> None:
        """The consumer is given up; of a group's member its partitions go with it."""

    def _tell(self, what: str, why: str) -> None:
        """Once each."""
        if what not in self._told:
            self._told.add(what)
            log.warning(what, extra={"topic": self.wanted.topic, "why": why})


async def abandon(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer, whatever state it is in; takes a few seconds at most.

    Its `stop` waits for tasks that may never end; those are cancelled by name (aiokafka is pinned).
    """
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_STOP_S):
            await consumer.stop()
            return
    coordinator, fetcher = consumer._coordinator, consumer._fetcher  # noqa: SLF001
    tasks = [
        getattr(owner, name, None)
        for owner, names in (
            (coordinator, ("_coordination_task", "_heartbeat_task", "_commit_refresh_task")),
            (fetcher, ("_fetch_task",)),
        )
        for name in names
    ]
    tasks += list(getattr(fetcher, "_pending_tasks", ()))
    for task in tasks:
        if isinstance(task, asyncio.Task):
            task.add_done_callback(_consume)
            task.cancel()
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_STOP_S):
            await consumer._client.close()  # noqa: SLF001


def _consume(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
