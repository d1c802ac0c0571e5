"""Admission: which requests are taken in, and how the others are told. core (admit, queue) -> **admission**.

A request is refused at once where it could not be answered before its deadline: what runs now, what the queue
runs before it, and its own run, by the learnt cost (`gateway.cost`). So under overload the work done is work
that is still wanted, and who is refused can go elsewhere at once. While a model refuses, requests that would
fare no better are turned away by their head alone, before they are decoded: under overload it is refusals that
come in numbers.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

from gateway import capture
from gateway.audit.event import ModelFacts
from gateway.batching import Inference, order_ns
from gateway.entry import Entry
from gateway.errors import (
    AuditUnavailable,
    GatewayError,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    RateLimited,
)
from gateway.fairness import Fairness, Refusal, Turns
from gateway.head import TIMEOUT_MAX_MS, Head, raised
from gateway.lanes import Lanes
from gateway.recording import Wish, refused_event
from gateway.replies import UNRECORDED
from gateway.serving import Models
from gateway.settings import Config
from gateway.version import Version

log = logging.getLogger("tidegate.worker")

MARGIN, MARGIN_AHEAD = 1.3, 1.6
"""A request's own run is counted so many times, and so many what runs before it: neighbours on the machine slow them,
refusing the others does too, and who is taken must not expire. Costs no goodput, as long as enough waits to keep the
lanes busy."""
TURN_AWAY_NS = 2_000_000
"""Requests are turned away by their head so long at most, until the next is looked at."""
PROBE_NS = 1_000_000_000
"""A version that did not run for so long may run, whatever was learnt of its cost: it may be other now."""
HOLD_BACK_S = 0.1
"""A connection is not read for so long, or up to twice as long, after a request over its principal's limits."""
HUNG_MAX = 3
"""A version with so many runs that hang gets no more."""


class Admission:
    """What one worker takes.

    Args:
        appender: the way into the ring, `gateway.append`; refusals go there.
        problem: turns an error into (status, fields, body); the one table of api.problems.
        waiting: the versions whose queue is not empty (`runs`).

    Threading: the loop thread alone. Cost: a few comparisons for a version that runs on the loop, one or two
    microseconds else; turning a request away by its head takes less than its reply's way out.
    """

    def __init__(
        self,
        config: Config,
        models: Models,
        appender: Any,
        problem: Callable[[GatewayError], tuple[int, bytes, bytes]],
        lanes: Lanes,
        waiting: dict[Version, None],
    ) -> None:
        self._models = models
        self._appender = appender
        self._problem = problem
        self._lanes = lanes
        self._waiting = waiting
        self._level: str = config.audit.level
        self._timeout_ns = config.data.request_timeout_ms * 1_000_000
        self._inflight_max = config.data.inflight_max
        limits = config.limits
        self.shares = Fairness(limits, config.data.inflight_max) if limits.is_on else None
        self.turns = Turns(limits.models) if limits.models else None
        self._queue_max_rows = config.batch.queue_max_rows
        self.refused = 0
        self.turned_away = 0
        """Refused by the head alone, less the replies that were made for that: errors that `problem` did not see."""
        self.rate_limited = 0
        """The same, of those over their own limits."""
        self._made: dict[str | Refusal, list[tuple[int, bytes, bytes]]] = {}

    def examine(self, head: Head, inference: Inference, inflight: int) -> None:
        """What does not hold for every request: a level of its own, a log that cannot be written, too many in flight.

        Raises:
            Overloaded, AuditUnavailable: it is not taken.
        """
        inference.audit_level = raised(self._level, head.audit_level)
        if head.captures_full:
            capture.ask(inference)
        if inflight >= self._inflight_max:
            msg = f"{inflight} requests are in flight; try again shortly"
            raise Overloaded(msg)
        if self._appender.fails:
            self._refuse_unlogged(inference)

    def audit(self, version: Version, inference: Inference) -> None:
        """What a version's own settings ask of the log: they raise the level, and may let nothing leave unlogged.

        Raises:
            AuditUnavailable: records cannot be kept at present.
            InvalidRequest: what is to be said of its redacted cells is more than a record takes.
        """
        redactor = version.redactor
        if (
            redactor is not None
            and redactor.log_bytes(inference.shapes) > self._appender.max_frame_bytes // 4
        ):
            msg = (
                f"features of model '{version.model}' are recorded as hashes or buckets, and this request has more of"
                " their values than one record takes; send fewer rows"
            )
            raise InvalidRequest(msg)
        inference.audit_level = raised(inference.audit_level, version.least_level)
        if version.fails:
            self._refuse_unlogged(inference)

    def _refuse_unlogged(self, inference: Inference) -> None:
        if inference.audit_level != "none" and self._appender.unavailable:
            msg = "the audit log cannot be written at present; nothing is answered unlogged"
            raise AuditUnavailable(msg)

    def set_deadline(self, head: Head, inference: Inference) -> None:
        """By the head, by parameter, or as configured; the place in the queue by priority. And what else parameters
        ask for: that the record has all tensors."""
        timeout_ns = self._timeout_ns if head.timeout_ms is None else head.timeout_ms * 1_000_000
        parameters = inference.parameters
        if parameters is not None:
            asked_us = parameters.get("timeout")
            if type(asked_us) is int and asked_us > 0:
                timeout_ns = min(asked_us * 1000, TIMEOUT_MAX_MS * 1_000_000)
            asked = parameters.get("priority")
            if type(asked) is int and 0 < asked < 1 << 32:
                inference.priority = asked
            if capture.asked_by(parameters):
                capture.ask(inference)
        received_ns = inference.received_ns
        inference.deadline_ns = deadline_ns = received_ns + timeout_ns
        inference.order_ns = order_ns(received_ns, deadline_ns, inference.priority)

    def check(self, entry: Entry, version: Version, inference: Inference) -> None:
        """Refuse what cannot be answered before its deadline, or would make others miss theirs.

        Raises:
            Overloaded: with how long it would take.
            ModelNotReady: the version's runs hang.
            InvalidRequest: its reply would be written for too long.
        """
        check_reply(version, inference)
        if version.hung >= HUNG_MAX:
            msg = (
                f"model '{version.model}' version {version.version} has {version.hung} runs that do not end; it takes"
                " requests again when one does"
            )
            raise ModelNotReady(msg)
        queue, rows = version.queue, inference.rows
        if queue.rows + rows > self._queue_max_rows and queue.rows:
            msg = f"{queue.rows} rows wait for model '{version.model}'; try again shortly"
            raise Overloaded(msg)
        now_ns = inference.decoded_ns
        left_ns = inference.deadline_ns - now_ns
        need_ns = self._need_ns(version, inference, rows, now_ns)
        if need_ns <= left_ns and (not queue.rows or self._spares_others(version, inference, now_ns)):
            return
        if not queue.rows and now_ns - version.ran_ns > PROBE_NS:
            return
        if not inference.priority and inference.deadline_ns - inference.received_ns >= self._timeout_ns:
            # One row and the usual time: what comes with no more than that fares no better for now.
            least_ns = need_ns if rows == 1 else self._need_ns(version, inference, 1, now_ns)
            entry.turn_away_until_ns = now_ns + min(max(least_ns - left_ns, 0), TURN_AWAY_NS)
        # Who would be too late alone is not told to come again: nothing that waits is the reason.
        alone = version.cost.wall_ns(rows) > left_ns
        msg = (
            f"model '{version.model}' would need {max(need_ns, 0) / 1e6:.0f} ms"
            f"{'' if alone else ' with what waits before'}, the deadline is in {max(left_ns, 0) / 1e6:.0f} ms; "
            + ("give it more time, or fewer rows" if alone else "try again shortly")
        )
        raise Overloaded(msg)

    def _need_ns(self, version: Version, inference: Inference, rows: int, now_ns: int) -> int:
        """When the request would be answered, from now, with the margin on what is before it."""
        queue, cost, place_ns = version.queue, version.cost, inference.order_ns
        if not version.on_lane:
            return cost.work_ns(queue.rows + rows)
        before_ns = self._lanes.wait_ns(now_ns)
        for other in self._waiting:
            if other is not version and other.on_lane and other.queue:
                before_ns += self._before_ns(version, rows, other, place_ns) // self._lanes.count
        ahead = queue.rows_before(place_ns) // self._lanes.count if queue.rows else 0
        if not ahead and not before_ns:
            return cost.wall_ns(rows)
        work_ns = cost.work_ns(ahead + rows)
        own_ns = min(cost.limit_ns, work_ns)
        return int((before_ns + work_ns - own_ns) * MARGIN_AHEAD + own_ns * MARGIN)

    def _before_ns(self, version: Version, rows: int, other: Version, place_ns: int) -> int:
        """What another version's queue has of the lanes before a request that takes its place now."""
        if self.turns is None or other.model == version.model:
            return other.cost.work_ns(other.queue.rows_before(place_ns))
        # Not by deadline: as much as its share lets it have meanwhile, and the run that is next.
        own_ns = version.cost.work_ns(version.queue.rows + rows)
        most_ns = self.turns.before_ns(version.model, other.model, own_ns) + other.cost.limit_ns
        return min(other.cost.work_ns(other.queue.rows), most_ns)

    def _spares_others(self, version: Version, inference: Inference, now_ns: int) -> bool:
        """Whether those whom it would pass still make it; some of them are looked at."""
        behind = version.queue.behind(inference.order_ns)
        if not behind:
            return True
        wait_ns = self._lanes.wait_ns(now_ns) if version.on_lane else 0
        return all(
            wait_ns + version.cost.work_ns((before + inference.rows) // self._lanes.count + other.rows)
            <= other.deadline_ns - now_ns
            for before, other in behind
        )

    def would_fare_no_better(self, head: Head, body: bytes) -> bool:
        """Whether what was refused of late stands for this request too: no more time or priority, no version or variant
        of its own."""
        return (
            (head.timeout_ms is None or head.timeout_ms * 1_000_000 <= self._timeout_ns)
            and head.version is None
            and head.variant is None
            and b'"timeout"' not in body
            and b'"priority"' not in body
        )

    def turn_away(self, head: Head, entry: Entry, sink: Any, received_ns: int) -> bool:
        """Refuse by the head alone, with a reply made before; True when the refusal needs an event of its own."""
        self.turned_away += 1
        replies = self._made.get(head.model)
        if replies is None:
            text = (
                f"model '{head.model}' is overloaded: what comes now would not be answered before its deadline;"
                " try again shortly"
            )
            replies = self._made_for(head.model, Overloaded(text))
        return self._refuse_by_head(head, entry, sink, received_ns, (Overloaded.code, replies))

    def refuse_share(self, head: Head, entry: Entry, sink: Any, received_ns: int, why: Refusal) -> bool:
        """Refuse, by the head alone, what is over its principal's limits or its model's share; True when the refusal
        needs an event of its own.

        Its connection rests for a moment: who asks again at once, whatever it was told, shall not keep us busy.
        """
        replies = self._made.get(why)
        kind = RateLimited if why.by_principal else Overloaded
        if replies is None:
            error = RateLimited(why.text, why.wait_s) if why.by_principal else Overloaded(why.text)
            replies = self._made_for(why, error)
        if why.by_principal:
            self.rate_limited += 1
        else:
            self.turned_away += 1
        waits = self._refuse_by_head(head, entry, sink, received_ns, (kind.code, replies))
        if why.by_principal:
            # Not all of its connections for as long: they would come back together.
            sink.hold_back(HOLD_BACK_S * (1 + random.random()))  # noqa: S311
        return waits

    def _made_for(self, key: str | Refusal, error: GatewayError) -> list[tuple[int, bytes, bytes]]:
        """Replies to refuse with; several, since each has a jittered Retry-After."""
        if len(self._made) > 1024:
            self._made.clear()
        made = [self._problem(error) for _ in range(8)]
        replies = self._made[key] = [(status, fields + UNRECORDED, body) for status, fields, body in made]
        if isinstance(error, RateLimited):
            self.rate_limited -= len(replies)
        else:
            self.turned_away -= len(replies)
        return replies

    def _refuse_by_head(
        self,
        head: Head,
        entry: Entry,
        sink: Any,
        received_ns: int,
        answer: tuple[str, list[tuple[int, bytes, bytes]]],
    ) -> bool:
        self.refused += 1
        code, replies = answer
        status, fields, body = replies[self.refused & 7]
        sink.reply(status, fields, body)
        if self._appender.sums((ModelFacts(head.model, None), None, code, status)):
            return False
        asked = Wish(raised(self._level, head.audit_level))
        event = refused_event(head, (code, status), entry, received_ns, asked)
        self._appender.log(event)
        return True

    def refuse(
        self, head: Head, exc: Exception, sink: Any, received_ns: int, inference: Inference | None = None
    ) -> bool:
        """Answer with an error at once; True when an event waits for a flush. A defect of ours is `internal`."""
        if not isinstance(exc, GatewayError):
            log.error("request_not_taken", exc_info=exc)
            exc = GatewayError("internal error")
        self.refused += 1
        if inference is not None and inference.held is not None:
            self.shares.give_back(inference)  # type: ignore[union-attr]
        status, fields, body = self._problem(exc)
        sink.reply(status, fields + UNRECORDED, body)
        if exc.code == AuditUnavailable.code:
            return False
        level = raised(self._level, head.audit_level) if inference is None else inference.audit_level
        asked, entry = Wish(level, inference), self._models.get(head.model)
        event = refused_event(head, (exc.code, status), entry, received_ns, asked)
        self._appender.refuse(event)
        return True


def check_reply(version: Version, inference: Inference) -> None:
    """Refuse what would have a JSON reply so large that the loop stands still while it is written.

    Raises:
        InvalidRequest: says what to do instead.
    """
    if inference.rows > version.json_rows and not all(getattr(inference.form, "binary", (False,))):
        msg = (
            f"{inference.rows} rows in one request with outputs in JSON; model '{version.model}' answers at most"
            f" {version.json_rows} so: ask for binary outputs, or send fewer rows"
        )
        raise InvalidRequest(msg)
