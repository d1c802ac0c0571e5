"""Runs: which version runs next, where, and what becomes of a run that fails or hangs.

core (queue) -> **runs** (infer) -> delivery (encode, append). Cheap runs go on the loop at the end of the turn,
costly ones on a lane; of the versions that wait for a lane the one with the most urgent request is next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from gateway import tensors
from gateway.batching import Batch, Inference
from gateway.errors import DeadlineExceeded, GatewayError, RequestCancelled
from gateway.fairness import Turns
from gateway.finite import check_rows, not_finite
from gateway.lanes import Job, Lanes
from gateway.recording import prepare
from gateway.retrying import leave_out, spoiled
from gateway.version import Version
from gateway.watchdog import Watchdog, Watched

log = logging.getLogger("tidegate.worker")
_now = time.perf_counter_ns

LOOP_NS = 10_000_000
"""Runs of one turn take the loop for so long; what then still waits has the next turn."""
TIMER_NS = 1_000_000
"""Timers may fire so much early."""


class Runs:
    """Cuts batches and runs them.

    Args:
        lanes: how many.
        delivery: `deliver` takes the batches that ran, `drop` the requests that do not; `flush` ends a turn.

    Attributes:
        waiting: versions whose queue is not empty.
        turns: whose turn a lane is, where models have shares of them; None: the most urgent request's.

    Threading: the loop thread alone; `run` also on lanes, touching only the batch.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, lanes: int, delivery: Any) -> None:
        self._loop = loop
        self._delivery = delivery
        self.lanes = Lanes(loop, lanes, self._lane_free)
        self.watchdog = Watchdog()
        self.watchdog.start()
        self.waiting: dict[Version, None] = {}
        self.turns: Turns | None = None
        self._retried = False
        """Since the last look at what waits."""

    def close(self) -> None:
        """Let the threads end."""
        self.lanes.close()
        self.watchdog.close()

    def work(self, cut: str) -> bool:
        """Run what waits and can run now; True when something could run and had no time left in this turn."""
        started_ns = _now()
        costly: list[Version] = []
        for version in list(self.waiting):
            if version.linger_ns and _lingers(version, started_ns):
                continue
            reason = "linger" if version.linger_ns else cut
            while version.queue:
                version.on_lane = lane = not version.runs_inline()
                if lane:
                    costly.append(version)
                    break
                batch = version.queue.cut(_now(), reason, version.cost, self._dropper(version))
                if batch is not None:
                    self._run_inline(version, batch)
                    if version.queue and batch.ended_ns - started_ns > LOOP_NS:
                        # The next turn begins with the others.
                        self.waiting[version] = self.waiting.pop(version)
                        return True
            else:
                del self.waiting[version]
        if costly:
            self._fill_lanes(costly, "idle" if cut == "turn" else cut)
        # They may have come behind a version that was looked at before.
        more, self._retried = self._retried, False
        return more

    def _fill_lanes(self, costly: list[Version], cut: str) -> None:
        """Give idle lanes work, the most urgent first."""
        while costly and self.lanes.idle:
            version = costly[0]
            if len(costly) > 1:
                version = min(costly, key=_first_ns if self.turns is None else self._turn)
            reason = "linger" if version.linger_ns else cut
            batch = version.queue.cut(_now(), reason, version.cost, self._dropper(version))
            if batch is not None:
                self._dispatch(version, batch)
            if not version.queue:
                costly.remove(version)
                self.waiting.pop(version, None)

    def _turn(self, version: Version) -> tuple[float, int]:
        return self.turns.start(version.model), _first_ns(version)  # type: ignore[union-attr]

    def _lane_free(self) -> None:
        if self.waiting and self.work("lane_free"):
            self._loop.call_soon(self._lane_free)
        self._delivery.flush()

    def _run_inline(self, version: Version, batch: Batch) -> None:
        options = version.run_options
        if options.terminate:
            # Stopped the last run, perhaps as it ended by itself.
            options = version.run_options = version.session.new_run_options()
        batch.run_options = options
        batch.timed = version.times()
        last = batch.inferences[-1].deadline_ns
        self.watchdog.inline = (options, last, version.model, version.version)
        self.run(version, batch)
        self.watchdog.inline = None
        if batch.cpu_ns > 2 * version.inline_ns or batch.terminated:
            version.demote()
            log.warning(
                "run_too_long_for_loop",
                extra={
                    "model": version.model,
                    "version": version.version,
                    "rows": batch.rows,
                    "cpu_ms": batch.cpu_ns // 1_000_000,
                },
            )
        self._finish(version, batch)

    def _dispatch(self, version: Version, batch: Batch) -> None:
        batch.run_options = options = version.session.new_run_options()
        deadline_ns = max([i.deadline_ns for i in batch.inferences])
        run_ns = version.cost.wall_ns(batch.rows)
        until_ns = _now() + run_ns
        if self.turns is not None:
            self.turns.charge(version.model, run_ns)
        job = Job(lambda: self.run(version, batch), lambda: self._done(version, batch), until_ns)

        def on_loop(what: Callable[[Version, Batch, Job], None]) -> Callable[[], None]:
            def told() -> None:
                # On the watchdog's thread.
                self._loop.call_soon_threadsafe(what, version, batch, job)

            return told

        batch.watched = Watched(options, deadline_ns, on_loop(self._give_up), on_loop(self._answer_without))
        self.watchdog.watch(batch.watched)
        self.lanes.submit(job)

    def _done(self, version: Version, batch: Batch) -> None:
        self.watchdog.forget(batch.watched)
        if batch.given_up:
            version.hung -= 1
            log.warning("hung_run_ended", extra={"model": version.model, "version": version.version})
        elif batch.told:
            version.stopped(batch)
        else:
            self._finish(version, batch)

    def _answer_without(self, version: Version, batch: Batch, job: Job) -> None:
        """A run is beyond its end, by which nobody waits for it any longer: its requests are told so."""
        if batch.told or not self.lanes.holds(job):
            return
        batch.told = True
        failed = Batch(batch.inferences, batch.rows, batch.cut)
        # Not the other's lists: its thread may still write to them.
        failed.joined = [b"".join(i.inputs[k] for i in batch.inferences) for k in range(version.inputs)]
        failed.started_ns = failed.ended_ns = _now()
        failed.error = DeadlineExceeded(f"model '{version.model}' did not answer before the deadline")
        self._deliver(version, failed)
        self._delivery.flush()

    def _give_up(self, version: Version, batch: Batch, job: Job) -> None:
        """A run does not heed its end: its lane is replaced."""
        if not self.lanes.holds(job):
            return
        self._answer_without(version, batch, job)
        version.hung += 1
        log.error(
            "run_hung",
            extra={
                "model": version.model,
                "version": version.version,
                "rows": batch.rows,
                "hanging": version.hung,
            },
        )
        batch.given_up = True
        self.lanes.give_up(job)

    def run(self, version: Version, batch: Batch) -> None:
        """Infer. On the loop (inline) or on a lane; touches only the batch."""
        inferences = batch.inferences
        try:
            feeds = {}
            batched = version.batchable
            for i, spec in enumerate(version.signature.inputs):
                if len(inferences) == 1:
                    data = inferences[0].inputs[i]
                else:
                    data = b"".join([inference.inputs[i] for inference in inferences])
                shape = inferences[0].shapes[i]
                if batched:
                    shape = (batch.rows, *shape[1:])
                batch.joined.append(data)
                feeds[spec.name] = tensors.to_array(spec.datatype, data, shape, spec.name)
            timed = batch.timed
            cpu_ns = time.thread_time_ns() if timed else 0
            batch.started_ns = _now()
            try:
                batch.outputs = version.session.run(feeds, None, batch.run_options)
            finally:
                batch.ended_ns = _now()
                if timed:
                    batch.cpu_ns = time.thread_time_ns() - cpu_ns
            if version.looks:
                if batched:
                    check_rows(batch.outputs, batch.rows)
                batch.bad = not_finite(batch.outputs, inferences, batched=batched)
        except Exception as exc:  # noqa: BLE001  whatever the runtime raises, the requests get an answer
            batch.ended_ns = batch.ended_ns or _now()
            batch.started_ns = batch.started_ns or batch.ended_ns
            batch.error = exc
        if batch.watched is not None:
            # Of failed ones too: what is costly of their records is not for the loop either.
            prepare(version, batch, self._delivery.limits)

    def _finish(self, version: Version, batch: Batch) -> None:
        version.ran_ns = batch.ended_ns
        if batch.error is None:
            version.learn(batch)
        elif batch.terminated:
            version.stopped(batch)
        elif len(batch.inferences) > 1:
            # One of them is bad: each runs alone, in the place where the batch ran.
            self._run_apart(version, batch)
            return
        if version.looks:
            self._deliver(version, batch)
        else:
            self._delivery.deliver(version, batch)

    def _deliver(self, version: Version, batch: Batch) -> None:
        """Deliver, less what goes to the primary; what came from a canary and was answered counts against that."""
        now_ns = _now()
        self._hand_over(version, batch, now_ns)
        bad = batch.bad or ()
        tried = [
            (inference, batch.error is None and place not in bad)
            for place, inference in enumerate(batch.inferences)
            if inference.first_try is not None
        ]
        if batch.inferences:
            self._delivery.deliver(version, batch)
        for inference, well in tried:
            _arrived(version)
            inference.first_try.retries.ran(well=well)
        for inference, well in tried:
            if well:
                inference.first_try.retries.answered(inference, now_ns)

    def _hand_over(self, version: Version, batch: Batch, now_ns: int) -> None:
        """What a canary failed goes to the primary, and is no part of its batch any more."""
        retries = version.retries
        if retries is None:
            return
        codes = spoiled(batch)
        again = {
            place
            for place in codes
            if retries.takes(batch.inferences[place], now_ns, self._delivery.limits[0])
        }
        if not again:
            return
        moved = [batch.inferences[place] for place in sorted(again)]
        leave_out(version, batch, again)
        for place, inference in zip(sorted(again), moved, strict=True):
            retries.send(inference, codes[place])
        # After the primary has them: a worker that is killed leaves no request untold.
        version.counting.handed_over(moved, now_ns)
        self.waiting[retries.primary] = None
        self._retried = True

    def _run_apart(self, version: Version, batch: Batch) -> None:
        for inference in batch.inferences:
            if batch.watched is None:
                self._run_inline(version, Batch([inference], inference.rows, "alone"))
            else:
                inference.key = object()
                version.queue.put(inference)
                self.waiting[version] = None

    def _dropper(self, version: Version) -> Callable[[Inference, bool], None]:
        """What a cut calls for requests that are gone or expired."""

        def drop(inference: Inference, expired: bool) -> None:
            if inference.first_try is not None:
                _arrived(version)
            exc: GatewayError = RequestCancelled("the client went away")
            if expired:
                exc = DeadlineExceeded(f"no answer from model '{version.model}' before the deadline")
            self._delivery.drop(version, inference, exc)

        return drop


def _arrived(version: Version) -> None:
    """A retry that waited for a version has run there, or was dropped."""
    version.awaited -= 1
    version.looks = version.retries is not None or version.awaited > 0


def _lingers(version: Version, now_ns: int) -> bool:
    """Whether it waits for company still: not yet long enough, and a batch is not full."""
    return now_ns + TIMER_NS < version.due_ns and version.queue.rows < version.cost.limit_rows


def _first_ns(version: Any) -> int:
    return int(version.queue.first_ns)
