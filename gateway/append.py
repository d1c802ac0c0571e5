"""Append: records into the ring, and what happens when the ring is full or the disk must be awaited.

core (encode) -> **append** -> ring. Appends come from the loop thread alone. Without room, frames wait here
in order and are tried again each millisecond, at most `audit.append_timeout_ms`; then the policy decides:
`degrade` draws numbers whose gap the next frame leads with and lets the answer go, `fail` draws none and
the answer becomes a 503. Nobody waits for what will not come: while the recorder says that it cannot write, or since
a frame waited in vain has moved nothing, the policy applies at once. Replies of level `fsync` wait here until the
recorder's mark covers them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

import msgspec

from gateway.audit.event import Event, ModelFacts, Prediction, RouteFacts
from gateway.audit.writer import Writer
from gateway.errors import FrameTooLarge
from gateway.settings import Audit

log = logging.getLogger("tidegate.worker")

RETRY_S = 0.001
REFUSALS_PER_S = 100
"""Above this, refusals are summed by model, version, route and code, and logged once a second."""

Alike = tuple[ModelFacts | None, RouteFacts | None, str | None, int]
"""Model, route, code and status of refusals that are summed."""
Release = Callable[[int | None, str], None]
"""Called with the frame's first number and the level reached; (None, "") when nothing may leave."""


class Appender:
    """Owns the way into one process's ring.

    Threading: the loop thread alone. Cost: one ring append per frame; nothing per request.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        writer: Writer,
        audit: Audit,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._loop = loop
        self._writer = writer
        self._ring = writer.ring
        self.max_frame_bytes = writer.ring.max_frame_bytes - 64
        """The largest payload that fits a frame of this ring."""
        self._clock_ns = clock_ns
        self._append_timeout_ns = audit.append_timeout_ms * 1_000_000
        self._sync_timeout_ns = audit.sync_timeout_ms * 1_000_000
        self.fails = audit.on_unavailable == "fail"
        """The policy: nothing unlogged leaves."""
        self._held: deque[tuple[bytes, int, int, bool, Release]] = deque()
        self._held_bytes = 0
        self._syncing: deque[tuple[int, int, Callable[[bool], None]]] = deque()
        self._stuck_at = -1
        """Where the recorder's mark stood when a frame waited in vain for it to move."""
        self._timer: asyncio.TimerHandle | None = None
        self._refused: list[Event] = []
        self._summed: dict[Alike, int] = {}
        self._second = 0
        self._second_count = 0
        self.gaps = 0

    @property
    def held(self) -> int:
        """Frames waiting for room or for the disk."""
        return len(self._held) + len(self._syncing)

    @property
    def unavailable(self) -> bool:
        """Records cannot be kept at present: where the policy is `fail`, refuse at admission."""
        return self._held_bytes > self.max_frame_bytes or self._hopeless

    @property
    def crowded(self) -> bool:
        """Half of the ring waits for the disk, or a frame for room: no time for records that are larger by a wish."""
        ring = self._ring
        return bool(self._held) or ring.committed - ring.synced > ring.capacity // 2

    @property
    def _hopeless(self) -> bool:
        """Waiting for room is in vain: the recorder cannot write, or has moved nothing since a frame waited so."""
        ring = self._ring
        return ring.unavailable or ring.synced == self._stuck_at

    def submit(
        self, payload: bytes, count: int, release: Release, *, waits: bool = True, fails: bool = False
    ) -> None:
        """Append a frame and release its replies, now or when there is room, in order.

        Args:
            fails: nothing of these leaves unlogged, whatever the gateway's policy.
            waits: False for a frame that no one asked to be kept (level none): without room it becomes
                part of a gap and is answered at once, whatever the policy.

        Raises:
            FrameTooLarge: no frame of this ring takes the payload; nothing is drawn, held or released.
        """
        if len(payload) > self.max_frame_bytes:
            msg = f"a payload of {len(payload)} bytes; a frame of this ring takes {self.max_frame_bytes}"
            raise FrameTooLarge(msg)
        if not self._held:
            first_seq = self._writer.append_run(payload, count)
            if first_seq is not None:
                release(first_seq, "spool")
                return
        if not waits:
            self._lose(count, release)
            return
        if self._held_bytes > self.max_frame_bytes or self._hopeless:
            # Those who came before draw their numbers before.
            self._try_held()
            self._give_up(count, release, fails=fails)
            return
        deadline_ns = self._clock_ns() + self._append_timeout_ns
        self._held.append((payload, count, deadline_ns, fails, release))
        self._held_bytes += len(payload)
        self._arm()

    def after_sync(self, done: Callable[[bool], None], *, fails: bool = True) -> None:
        """Call `done(True)` once all that is appended now is on disk, `done(False)` when it takes
        longer than `audit.sync_timeout_ms`.

        Args:
            fails: the policy; where it is not `fail` nobody waits while the recorder cannot write.
        """
        if not fails and self._ring.unavailable:
            done(self._ring.synced >= self._ring.committed)
            return
        self._syncing.append((self._ring.committed, self._clock_ns() + self._sync_timeout_ns, done))
        self._arm()

    def refuse(self, event: Prediction) -> None:
        """Log a request that was refused, with the next `flush`; many in a second only as a sum."""
        route = event.route
        if route is not None:
            # What was drawn for is each request's own; how it was drawn is not.
            route = msgspec.structs.replace(route, unit_hash=None)
        if not self.sums((event.model, route, event.code, event.status)):
            self._refused.append(event)

    def sums(self, alike: Alike) -> bool:
        """Count a refusal; True when it is in the second's sum, False when it shall have an event of its own."""
        second = self._clock_ns() // 1_000_000_000
        if second != self._second:
            self._second, self._second_count = second, 0
        self._second_count += 1
        if self._second_count <= REFUSALS_PER_S:
            return False
        self._summed[alike] = self._summed.get(alike, 0) + 1
        return True

    def log(self, event: Event) -> None:
        """Log any other event, each for itself, with the next `flush`: admitted requests too, whose route
        and version count."""
        self._refused.append(event)

    def flush(self) -> None:
        """Append what `refuse` and `log` collected. At the end of a turn."""
        if not self._refused or self._held:
            return
        events, self._refused = self._refused, []
        for start in range(0, len(events), 64):
            self._append(events[start : start + 64])

    def _append(self, events: list[Event]) -> None:
        """Append whole events: together if a frame takes them, else one by one; what does not fit is a gap."""
        try:
            if self._writer.append_events(events) is not None:
                return
        except FrameTooLarge:
            if len(events) > 1:
                for event in events:
                    self._append([event])
                return
            log.exception("event_too_large", extra={"event_type": type(events[0]).__name__})
        self._writer.lose(len(events))
        self.gaps += len(events)

    def flush_sums(self) -> None:
        """Once a second: log the summed refusals."""
        summed, self._summed = self._summed, {}
        for (model, route, code, status), count in summed.items():
            self._refused.append(
                Prediction(
                    kind="refused",
                    done_ns=time.time_ns(),
                    route=route,
                    model=model,
                    code=code,
                    status=status,
                    # What each of them asked for is not kept, and nothing waits for a sum.
                    audit="none",
                    count=count,
                )
            )
        self.flush()

    def _give_up(self, count: int, release: Release, *, fails: bool) -> None:
        if self.fails or fails:
            release(None, "")
            return
        self._lose(count, release)

    def _lose(self, count: int, release: Release) -> None:
        self.gaps += count
        release(self._writer.lose(count), "none")

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(RETRY_S, self._retry)

    def _try_held(self) -> None:
        """Append what waits, in order; give up what has waited for so long as it may, or waits in vain."""
        now_ns = self._clock_ns()
        while self._held:
            payload, count, deadline_ns, fails, release = self._held[0]
            # Before the try: had the mark moved behind it, nobody waited in vain.
            synced = self._ring.synced
            first_seq = self._writer.append_run(payload, count)
            if first_seq is None and now_ns < deadline_ns and not self._hopeless:
                break
            self._held.popleft()
            self._held_bytes -= len(payload)
            if first_seq is None:
                self._stuck_at = synced
                self._give_up(count, release, fails=fails)
            else:
                release(first_seq, "spool")

    def _retry(self) -> None:
        self._timer = None
        self._try_held()
        synced, now_ns = self._ring.synced, self._clock_ns()
        while self._syncing and (self._syncing[0][0] <= synced or self._syncing[0][1] <= now_ns):
            mark, _, done = self._syncing.popleft()
            done(mark <= synced)
        if self._held or self._syncing:
            self._arm()
