"""The core: one request from its head and body to its reply, the same behind both doors.

    receive: admit -> decode -> route -> queue        once per request, on arrival
    turn:    cut batches -> infer -> encode -> append  once per turn of the loop, for all that arrived

Work is done per turn: one callback runs the batches, encodes all rows of a run with one call, appends one
columnar frame per run, updates metrics and writes the replies. What is taken is `admission`'s, what runs
when and where is `runs`', record and replies are `delivery`'s. `gateway.worker` composes the parts; this file
knows no HTTP beyond reply fields.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from gateway.admission import Admission
from gateway.append import Appender
from gateway.audit.frame import Caller, encoder
from gateway.batching import Inference
from gateway.delivery import Delivery
from gateway.entry import Entry
from gateway.errors import Forbidden, GatewayError, UnknownModel
from gateway.fairness import Refusal
from gateway.head import Head
from gateway.replies import Problem
from gateway.runs import Runs
from gateway.serving import Models
from gateway.settings import Config
from gateway.version import FREE_LEFT_NS, Version

_now = time.perf_counter_ns
_bits = random.getrandbits

JOIN_MIN = 4
"""So many requests since the last look say that more are on their way: a turn begins only after the sockets were read
once more. What is done once a run is then shared by more; who waits, waits for reads alone."""
JOINS_MAX = 2
"""So often at most."""


class Core:
    """One worker's request path.

    Args:
        problem: turns an error into (status, fields, body); the one table of api.problems.

    Threading: the loop thread alone; lanes run sessions and touch nothing else.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        models: Models,
        appender: Appender,
        problem: Problem,
        prefix: str,
    ) -> None:
        self._loop = loop
        self.models = models
        self.appender = appender
        self._entry_of = models.entries.get
        self.delivery = Delivery(appender, problem, prefix.encode(), config.audit.capture_max_bytes)
        self.runs = Runs(loop, config.batch.lanes, self.delivery)
        self._waiting = self.runs.waiting
        self.admission = Admission(config, models, appender, problem, self.runs.lanes, self._waiting)
        self.delivery.shares, self.runs.turns = self.admission.shares, self.admission.turns
        self._callers: dict[tuple[str, str, str | None], msgspec.Raw] = {}
        self._scheduled = False
        self._joined = self._joins = 0
        self.turns = 0
        self._level: str = config.audit.level
        self._shares = self.admission.shares
        # Where somebody is limited, or nothing may leave unlogged, no request goes the common way.
        self._guarded = appender.fails or self._shares is not None
        self._forces = config.data.on_loopback and not config.data.proxies
        """Whether whoever reaches this listener may name a variant."""
        self._inflight_max = config.data.inflight_max
        self._timeout_ns = config.data.request_timeout_ms * 1_000_000
        self._taken = 0
        # One: reading JSON holds the interpreter, and between two of them the loop has its turn.
        self._decoding = ThreadPoolExecutor(1, "decode")
        self._large: set[asyncio.Task[None]] = set()

    @property
    def inflight(self) -> int:
        """Requests that were taken and are not answered yet."""
        return self._taken - self.delivery.answered

    @property
    def refused(self) -> int:
        """Requests refused since the start."""
        return self.admission.refused

    def close(self) -> None:
        """Let lanes and watchdog end. Nothing may be received afterwards."""
        self.runs.close()
        self._decoding.shutdown(wait=False, cancel_futures=True)

    def caller(self, endpoint: str, protocol: str, principal: str | None) -> msgspec.Raw:
        """The encoded caller; one object for equal callers, at most 4,096 kept."""
        made = self._callers.get(key := (endpoint, protocol, principal))
        if made is None:
            if len(self._callers) >= 4096:
                self._callers.clear()
            made = self._callers[key] = msgspec.Raw(encoder.encode(Caller(*key)))
        return made

    # --- on arrival ------------------------------------------------------------------------

    def receive(self, head: Head, body: bytes | memoryview, sink: Any, received_ns: int) -> None:
        """Take a request in; `sink.reply(status, fields, body)` answers, refusals before this returns."""
        inference = Inference(sink, received_ns, head.caller, head.traceparent, self._level)
        entry = self._entry_of(head.model)
        try:
            if (
                entry is None
                or entry.single is None
                or head.version is not None
                or head.routing_key is not None
                or head.timeout_ms is not None
                or head.audit_level is not None
                or head.dialect != "oip"
                or received_ns < entry.turn_away_until_ns
                or self._guarded
                or self._taken - self.delivery.answered >= self._inflight_max
            ):
                self._receive_other(head, body, sink, inference)
                return
            # The common case, `_receive_other` with what it asks answered: one version has all the traffic, and
            # the head asks for nothing.
            assignment, version = entry.single
            codec = entry.codec or entry.codec_of(None)
            first = not self._scheduled
            if first:
                self.delivery.admit_ns = _now() - received_ns
            codec.decode(body, head.json_bytes, inference)
            inference.decoded_ns = decoded_ns = _now()
            if inference.parameters is not None or version.codec is not codec:
                self._settle(entry, codec, head, body, inference)
                return
            inference.assignment = assignment
            inference.unit = _bits(64)
            inference.deadline_ns = inference.order_ns = received_ns + self._timeout_ns
            if first:
                self.delivery.route_ns = _now() - decoded_ns
            self._queue(entry, version, inference)
        except Exception as exc:  # noqa: BLE001  whatever it is, the request gets an answer
            self.refuse(head, exc, sink, received_ns, inference)

    def _receive_other(self, head: Head, body: bytes | memoryview, sink: Any, inference: Inference) -> None:
        entry = self._admit(head, body, sink, inference)
        if entry is None:
            return
        if not self._scheduled:
            # The first of a turn is timed for all: what is measured takes less than to measure it.
            self.delivery.admit_ns = _now() - inference.received_ns
        codec = entry.codec if head.version is None else entry.codec_of(head.version)
        if codec is None:
            codec = entry.codec_of(None)
        head.decoder(codec)(body, head.json_bytes, inference)
        inference.decoded_ns = _now()
        self._settle(entry, codec, head, body, inference)

    def _settle(
        self, entry: Entry, codec: Any, head: Head, body: bytes | memoryview, inference: Inference
    ) -> None:
        """Route and queue what was decoded."""
        version = self._route(entry, head, inference)
        if inference.held is not None:
            self._shares.charge(inference.held, inference.rows)  # type: ignore[union-attr]
        if not self._scheduled:
            self.delivery.route_ns = _now() - inference.decoded_ns
        if version.codec is not codec:
            # Another signature than the primary's: its own order, names and shapes count.
            _forget(inference)
            head.decoder(version.codec)(body, head.json_bytes, inference)
        self._queue(entry, version, inference)

    def receive_binary(self, head: Head, body: memoryview, sink: Any, received_ns: int) -> None:
        """The same for a large body whose JSON is small: on the loop, unless its tensors are to be walked through.

        Args:
            body: views of it are the inputs, so it stays as it is until the answer.
        """
        entry = self._entry_of(head.model)
        try:
            walks = entry is not None and entry.codec_of(head.version).walks
        except GatewayError:
            # As `receive` will say.
            walks = False
        if walks:
            work = self._loop.create_task(self.receive_large(head, body, sink, received_ns))
            self._large.add(work)
            work.add_done_callback(self._large.discard)
        else:
            self.receive(head, body, sink, received_ns)

    async def receive_large(self, head: Head, body: bytes | memoryview, sink: Any, received_ns: int) -> None:
        """The same for a body whose JSON would hold the loop up: decoded on a thread, one after another."""
        inference = Inference(sink, received_ns, head.caller, head.traceparent, self._level)
        try:
            entry = self._admit(head, body, sink, inference)
            if entry is None:
                return
            codec = entry.codec_of(head.version)
            await self._off_loop(head.decoder(codec), body, head.json_bytes, inference)
            inference.decoded_ns = _now()
            entry = self._entry_of(head.model)
            if entry is None:
                raise UnknownModel(head.model, head.version)
            version = self._route(entry, head, inference)
            if inference.held is not None:
                self._shares.charge(inference.held, inference.rows)  # type: ignore[union-attr]
            if version.codec is not codec:
                _forget(inference)
                await self._off_loop(head.decoder(version.codec), body, head.json_bytes, inference)
            self._queue(entry, version, inference)
        except Exception as exc:  # noqa: BLE001  whatever it is, the request gets an answer
            self.refuse(head, exc, sink, received_ns, inference)

    def _off_loop(self, work: Callable[..., None], *args: Any) -> asyncio.Future[None]:
        return self._loop.run_in_executor(self._decoding, work, *args)

    def _admit(self, head: Head, body: bytes | memoryview, sink: Any, inference: Inference) -> Entry | None:
        """The request's model; None when the request was turned away."""
        if (
            self._taken - self.delivery.answered >= self._inflight_max
            or self._guarded
            or head.audit_level is not None
        ):
            self.admission.examine(head, inference, self.inflight)
        entry = self._entry_of(head.model)
        if entry is None:
            raise UnknownModel(head.model, head.version)
        if inference.received_ns < entry.turn_away_until_ns and self.admission.would_fare_no_better(
            head, bytes(body[: head.json_bytes])
        ):
            if self.admission.turn_away(head, entry, sink, inference.received_ns):
                self._schedule()
            return None
        if self._shares is not None:
            refusal = self._shares.claim(
                head.account, entry.model, len(body), self.inflight, inference.received_ns
            )
            if isinstance(refusal, Refusal):
                if self.admission.refuse_share(head, entry, sink, inference.received_ns, refusal):
                    self._schedule()
                return None
            inference.held = refusal
        return entry

    def _route(self, entry: Entry, head: Head, inference: Inference) -> Version:
        """Draw the version, set deadline and place."""
        parameters = inference.parameters
        if (
            parameters is None
            and entry.single is not None
            and head.version is None
            and head.routing_key is None
            and head.timeout_ms is None
            and head.variant is None
        ):
            # The common case: one version has all the traffic, nothing is asked for.
            inference.assignment, version = entry.single
            inference.unit = _bits(64)
            inference.deadline_ns = inference.order_ns = inference.received_ns + self._timeout_ns
            return version
        self.admission.set_deadline(head, inference)
        if head.version is not None:
            version = entry.version(head.version)
            inference.assignment = entry.pinned(head.version)
            return version
        if head.variant is not None:
            return self._force(entry, head, inference)
        table = entry.draw()
        key = head.routing_key
        if key is None and parameters is not None:
            key = parameters.get("routing_key")  # type: ignore[assignment]
        if key is None:
            inference.unit = unit = _bits(64)
            assignment = table.pick(unit)
        else:
            inference.unit = unit = table.unit_of(str(key))
            assignment = table.pick_keyed(unit)
        version = entry.version(assignment.version)
        inference.assignment = assignment
        return version

    def _force(self, entry: Entry, head: Head, inference: Inference) -> Version:
        """The version of a variant that the request names.

        Raises:
            InvalidRequest, ModelNotReady: there is no such variant, or it cannot answer.
            Forbidden: not on this address without a token of that scope.
        """
        if not (self._forces or head.forces):
            msg = f"x-tidegate-variant is not taken here; it needs a token of scope force:{entry.model}"
            raise Forbidden(msg)
        assignment = entry.forced(str(head.variant))
        version = entry.version(assignment.version)
        inference.assignment = assignment
        version.counting.forced()
        return version

    def _queue(self, entry: Entry, version: Version, inference: Inference) -> None:
        queue = version.queue
        if queue.rows + inference.rows > version.free_rows or (
            inference.deadline_ns - inference.decoded_ns < FREE_LEFT_NS
        ):
            self.admission.check(entry, version, inference)
        if version.audited:
            self.admission.audit(version, inference)
        if version.checks is not None:
            # Last: who is refused for want of time was not looked at, and is not counted as flagged.
            version.checks.check(inference)
        if version.linger_ns and not queue.rows:
            version.due_ns = inference.decoded_ns + version.linger_ns
            self._loop.call_later(version.linger_ns / 1e9, self._schedule)
        version.admitted += 1
        self._taken += 1
        queue.put(inference)
        self._waiting[version] = None
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        if self._scheduled:
            return
        self._scheduled = True
        self._loop.call_soon(self._look)

    def refuse(
        self, head: Head, exc: Exception, sink: Any, received_ns: int, inference: Inference | None = None
    ) -> None:
        """Answer with an error at once and log the refusal with this turn; a defect of ours is `internal`."""
        if self.admission.refuse(head, exc, sink, received_ns, inference):
            self._schedule()

    # --- once per turn ---------------------------------------------------------------------

    def _look(self) -> None:
        """A turn, now or once the sockets were read again: where several came, more came while they were read."""
        taken = self._taken
        if taken - self._joined >= JOIN_MIN and self._joins < JOINS_MAX:
            self._joined = taken
            self._joins += 1
            self._loop.call_soon(self._look)
            return
        self._joined, self._joins = taken, 0
        self.turn()

    def turn(self) -> None:
        """Run, encode, append and answer what arrived; called once per turn of the loop."""
        self._scheduled = False
        self.turns += 1
        self.models.poll()
        if self._waiting:
            for version in self._waiting:
                version.publish_admitted()
            if self.runs.work("turn"):
                self._schedule()
        self.appender.flush()


def _forget(inference: Inference) -> None:
    """What the primary's codec read of it; another version's reads it again."""
    inference.key = inference.wanted = inference.form = None
