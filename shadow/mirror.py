"""The mirror: shadows answer what was asked, off the request path. `python -P -m shadow.mirror`

feed -> **mirror** (routes -> replicas) -> shadow events in the log -> compare. It reads the log like anyone else, runs
the versions that a route names as shadows on the inputs as logged, and appends what they say. At least once: its place
is saved behind what is on disk, and consumers drop doubles by (derived_from, version, run). It runs only when no one
else wants the processor, and may be killed at any point; a shadow's crash takes this process alone.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from gateway import config as configuration
from gateway import logs, process
from gateway.audit.drained import sources_of, wait_drained
from gateway.audit.event import Control, Event, Model, Prediction, Shadow
from gateway.audit.feed import Feed
from gateway.audit.identity import source_of
from gateway.audit.source import SMALL_RING_BYTES, claim_source
from gateway.audit.writer import Writer
from gateway.errors import FrameTooLarge, GatewayError
from shadow.feeds import await_topic, open_feed, reads_topic
from shadow.replicas import MAX_ROWS, Replicas, Task, oversized
from shadow.resume import (
    Key,
    Place,
    Saver,
    answered_since,
    load_place,
    shadowed_since,
    spool_since,
    write_place,
)
from shadow.running import Running

log = logging.getLogger("tidegate.mirror")

READ_EVENTS = 1000
IDLE_S = (0.1, 0.5)
"""Between looks at a spool where nothing comes: first and longest."""
TOPIC_WAIT_MS = 500
HOLD_S = 5.0
"""A prediction waits so long for the control event of its revision."""
HELD_MAX = 10_000
RING_POLL_S = 0.01
STOP_S = 5.0
"""After SIGTERM: for the disk, and for what is left when no route has a shadow any more."""
FRAME_SHARE = 4
"""Answers of one frame take at most this fraction (1/4) of the largest."""
_ANSWER_BYTES = 1024
_WORKERS = 256


class Parts(NamedTuple):
    """What a mirror works with."""

    feed: Feed
    writer: Writer
    replicas: Replicas
    saver: Saver


class Stopped(Exception):
    """Told to end while something is left to do; the next mirror does it."""


class Mirror:
    """Follows one gateway's log. One thread; `step` is one read and all that follows from it.

    Args:
        place: where the feed stands; kept up to date.
        answered: what predecessors answered beyond it.
        stop: set to end.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        parts: Parts,
        gateway_id: str,
        place: Place,
        answered: set[Key],
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed, self._writer, self._replicas, self._saver = parts
        self._workers = {f"{source_of(gateway_id, 'worker', i):016x}" for i in range(_WORKERS)}
        self._control = {f"{source:016x}" for source in sources_of(gateway_id, "control")}
        self._place = place
        self._answered = answered
        self._stop = stop
        self._clock = clock
        self._held: list[tuple[float, Prediction]] = []
        self._idle = True
        self._give_up_s: float | None = None

    def step(self, wait_ms: int = 0) -> bool:
        """Read, answer, append; whether there was anything to answer or to wait for.

        Raises:
            Stopped: told to end before all of it was answered; the place stays behind it.
        """
        delivery = self._feed.read(READ_EVENTS, wait_ms)
        for event in delivery.events:
            self._take(event)
        due = self._due()
        tasks = [Task(event, version) for event in due for version in self._place.book.sampled(event)]
        self._answer([task for task in tasks if task.key not in self._answered])
        self._answered.difference_update(task.key for task in tasks)
        self._replicas.retain(self._place.book.wanted)
        self._writer.heartbeat()
        busy = bool(due or self._held)
        self._idle = self._idle and not tasks
        if not self._held:
            if not due and len(delivery.events) < READ_EVENTS:
                # At the end of the log: what predecessors answered is behind.
                self._answered.clear()
            self._place.feed = self._feed.positions
            self._save()
        self._saver.flush(self._clock())
        return busy

    def finish(self, *, whole: bool = True) -> None:
        """Save the place, end the epoch, let go of everything. Takes at most a few seconds.

        Args:
            whole: the last step came to its end.
        """
        over_s = self._clock() + STOP_S
        if whole and not self._held:
            if self._place.book.wanted:
                self._saver.offer(self._place)
            else:
                # A shadow looks forward: the next one begins where it appears.
                self._saver.forget()
        while not self._saver.flush(self._clock()) and self._clock() < over_s:
            time.sleep(RING_POLL_S)
        self._writer.close()
        self._feed.close()
        self._replicas.retain(())

    def _take(self, event: Event) -> None:
        match event:
            case Control() if event.id[:16] in self._control:
                self._replicas.retry(self._place.book.learn(event))
            case Model(kind="loaded", model=facts) if facts is not None and event.id[:16] in self._workers:
                if facts.version is not None and facts.tree_sha256 is not None:
                    self._replicas.note_loaded(facts.name, facts.version, facts.tree_sha256)
            case Prediction(kind="done") if event.id[:16] in self._workers:
                if event.route and event.model and event.received_ns >= self._place.since_ns:
                    self._held.append((self._clock() + HOLD_S, event))
            case _:
                pass

    def _due(self) -> list[Prediction]:
        """Predictions whose revision is known, or that have waited long enough."""
        due: list[Prediction] = []
        held: list[tuple[float, Prediction]] = []
        now_s = self._clock()
        over = len(self._held) - HELD_MAX
        for index, (deadline_s, event) in enumerate(self._held):
            if not self._place.book.knows(event):
                if now_s < deadline_s and index >= over:
                    held.append((deadline_s, event))
                    continue
                assert event.route is not None and event.model is not None
                facts = {"model": event.model.name, "revision": event.route.revision}
                log.warning("revision_not_in_log", extra=facts)
                self._place.book.assume(event)
            due.append(event)
        self._held = held
        return due

    def _answer(self, tasks: list[Task]) -> None:
        tasks.sort(key=lambda task: (task.model, task.version))
        for start in range(0, len(tasks), MAX_ROWS):
            if self._stop.is_set():
                raise Stopped
            self._append(self._replicas.answer(tasks[start : start + MAX_ROWS]))

    def _append(self, answers: Iterable[Shadow]) -> None:
        limit = self._writer.ring.max_frame_bytes // FRAME_SHARE
        frame: list[Shadow] = []
        size = 0
        for answer in answers:
            of_answer = _ANSWER_BYTES + sum(len(tensor.data or b"") for tensor in answer.outputs)
            if frame and size + of_answer > limit:
                self._put(frame)
                frame, size = [], 0
            frame.append(answer)
            size += of_answer
        if frame:
            self._put(frame)

    def _put(self, frame: list[Shadow]) -> None:
        """Append, waiting for room: nothing is on the request path here, and nothing is lost."""
        try:
            self._put_whole(frame)
        except FrameTooLarge as exc:
            for answer in frame:
                if len(frame) > 1:
                    self._put([answer])
                else:
                    self._put_whole([oversized(answer, str(exc))])

    def _put_whole(self, frame: list[Shadow]) -> None:
        while self._writer.append_events(frame) is None:
            if self._stop.is_set():
                self._give_up_s = self._give_up_s or self._clock() + STOP_S
                if self._clock() >= self._give_up_s:
                    raise Stopped
            time.sleep(RING_POLL_S)

    def _save(self) -> None:
        if not self._answered:
            self._saver.behind_tail()
        if self._saver.due(self._clock(), idle=self._idle):
            self._saver.offer(self._place)
            self._idle = True


def first_place(spool: Path, gateway_id: str, *, topic: bool) -> Place:
    """A first start: routes from their beginning, predictions from the change that asked for a shadow."""
    control = sources_of(gateway_id, "control")
    since_ns = shadowed_since(spool, control)
    if since_ns is None:
        since_ns = time.time_ns()
    return Place(feed={} if topic else spool_since(spool, since_ns, control), since_ns=since_ns)


def make(context: process.Context, stop: threading.Event) -> Mirror:
    """Claim a source, find the place, open everything.

    Raises:
        SystemExit: the recorder does not drain what a predecessor left, or told to stop while waiting for the topic.
        FeedUnreachable: as `open_feed`.
    """
    config = configuration.decode(context.config)
    state_dir, ring_dir = context.state_path, Path(context.ring_dir)
    if not await_topic(config, stop.is_set):
        raise SystemExit(0)
    spool, path = state_dir / "spool", state_dir / "mirror" / "positions.json"
    own = sources_of(context.gateway_id, "mirror")
    source = claim_source(state_dir, context.gateway_id, "mirror", ring_dir, SMALL_RING_BYTES)
    writer = Writer(source, context.gateway_id)
    if not wait_drained(ring_dir, own, source.ring_path.name):
        log.error("predecessor_not_drained", extra={"todo": "is the recorder running?"})
        raise SystemExit(1)
    place = load_place(path)
    if place is None:
        place = first_place(spool, context.gateway_id, topic=reads_topic(config))
        place.outputs = {f"{source.source:016x}-{source.epoch:08x}": 0}
        # At once: a kill before the first answer must not move the beginning.
        write_place(path, msgspec.json.encode(place))
    answered = answered_since(spool, own, place.outputs)
    capture_max_bytes = min(config.audit.capture_max_bytes, writer.ring.max_frame_bytes // FRAME_SHARE)
    running = Running(path.parent, place.book.newest_revision)
    running.watch_faults()
    replicas = Replicas.of_repository(
        Path(context.models), config.session.providers, capture_max_bytes, running
    )
    replicas.digests = place.digests
    parts = Parts(open_feed(config, spool, place.feed), writer, replicas, Saver(path, writer, place.outputs))
    log.info("mirroring", extra={"from_topic": reads_topic(config), "answered_before": len(answered)})
    return Mirror(parts, context.gateway_id, place, answered, stop)


def run(mirror: Mirror, stop: threading.Event, *, topic: bool) -> None:
    """Follow until told to end."""
    idle_s, whole = IDLE_S[0], True
    try:
        while not stop.is_set():
            busy = mirror.step(TOPIC_WAIT_MS if topic else 0)
            idle_s = IDLE_S[0] if busy else min(idle_s * 1.5, IDLE_S[1])
            if not busy and not topic:
                stop.wait(idle_s)
    except Stopped:
        whole = False
    mirror.finish(whole=whole)


def main() -> NoReturn:
    """Entry of the process."""
    context = process.enter()
    logs.setup("mirror")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    process.lowest_priority()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        mirror = make(context, stop)
        run(mirror, stop, topic=reads_topic(configuration.decode(context.config)))
    except GatewayError as exc:
        log.error("stopped", extra={"why": str(exc)})  # noqa: TRY400
        raise SystemExit(1) from None
    except OSError as exc:
        why = {"why": exc.strerror, "todo": "is there room in the state directory?"}
        log.error("stopped", extra=why)  # noqa: TRY400
        raise SystemExit(1) from None
    raise SystemExit(0)


if __name__ == "__main__":
    main()
