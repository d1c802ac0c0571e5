"""The sidecar: watches the log, decides, and turns traffic back. `python -P -m shadow.sidecar`

log -> runner -> watch -> decide -> **verdict in the log** -> commit -> act. It reads nothing but the log and the
bundles, and changes nothing but routes, over the admin API. It may die at any point:

* before the verdict is on disk: the next one makes the tick anew, with cuts of its own;
* after it: the next one finds the tick in the log and folds to the very same cuts before it goes on;
* after the commit: what was decided and is not in effect stands in the database, and is carried on.

While it is dead nothing happens but that leases run out.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from gateway import config as configuration
from gateway import logs, process
from gateway.audit.drained import sources_of, wait_drained
from gateway.audit.event import Event, Verdict
from gateway.audit.feed import Feed, Positions
from gateway.audit.source import SMALL_RING_BYTES, claim_source
from gateway.audit.writer import Writer
from gateway.errors import FrameTooLarge, GatewayError
from shadow.act import REASON_CHARS, Acted, Actor, Pending
from shadow.bundles import Bundles
from shadow.feeds import await_topic, open_feed
from shadow.replay import fold
from shadow.runner import Runner
from shadow.state import Settings, Tick
from shadow.status import EVERY_S, write_status
from shadow.store import Store, open_store, set_aside
from shadow.verdicts import (
    Stored,
    alarm_event,
    decision_event,
    gateway_sources,
    slim,
    stored_after,
    tick_event,
)
from shadow.watch import Watch

log = logging.getLogger("tidegate.sidecar")

STATE = "sidecar/state.db"
IDLE_S = 0.1
QUIET_TICK_S = 60.0
"""Between ticks while nothing happens: they carry the clock on, by which labels come due."""
LACKING_S = 10.0
"""A tick waits so long for the control event of a revision that was served already."""
HELD_MAX_BYTES = 64 << 20
"""A tick whose answers take so much is closed before its time."""
SYNC_S = 10.0
RETRY_S = 1.0
REFUSED_S = 10.0
"""Before a refused act is tried again: the route may have been thawed."""
ADOPT_WAIT_MS = 5000
"""The topic may lag behind the spool, where ticks are found."""


class Parts(NamedTuple):
    """What a sidecar is made of; tests give their own.

    `feed` makes a feed that goes on from the positions given; `settings` judge the ticks from now on.
    """

    gateway_id: str
    writer: Writer
    store: Store
    bundles: Bundles
    actor: Actor
    feed: Callable[[Positions], Feed]
    settings: Settings
    tick_s: float
    status: Path | None = None
    """Where it says how it does."""
    wait_ms: int = 0
    """How long a turn waits for a feed that has nothing: one that works only while it is read needs it."""


class Sidecar:
    """One sidecar of one gateway.

    Threading: one thread; `step` is one turn of its loop.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._writer = parts.writer
        self._saved = parts.store.saved
        self.watch = Watch(parts.bundles, parts.store.join, self._saved.state)
        self._feed = parts.feed(self._saved.feed or self._saved.cut)
        self.runner = Runner(
            self._feed,
            self.watch,
            self._saved.cut,
            gateway_sources(parts.gateway_id),
            gateway_sources(parts.gateway_id, ("worker", "control")),
        )
        self._fresh_settings: Settings | None = None
        self._read_until_ns = 0
        """Of which time the newest record was that this process judged; 0 before its first tick."""
        self._read_until_s = -math.inf
        """The same on the clock that is never set."""
        self._last_tick_s = time.monotonic()
        self._next_tick_s = self._last_tick_s + parts.tick_s
        self._next_lease_s = self._next_status_s = 0.0
        self._next_act_s: dict[str, float] = {}
        """By decision that is not in effect yet: when it is tried again."""
        self._told: dict[str, str] = {}

    # --- start -----------------------------------------------------------------------------

    def adopt(self, stored: list[Stored], *, gone_is_missing: bool = False) -> None:
        """Fold to the cuts of ticks that a predecessor logged and did not commit, then go on by our own settings.

        Args:
            gone_is_missing: over the spool, which held all of a tick before it was made: what it lacks now is gone
                for good, and no reason to wait. A topic may lag behind.

        Raises:
            LogIncomplete: the log ends before such a cut; the next start tries again.
        """
        adopted = 0
        for one in stored:
            if one.tick.number <= self.watch.state.tick:
                continue
            fold(
                self.watch,
                self.runner,
                one,
                0 if gone_is_missing else ADOPT_WAIT_MS,
                gone_is_missing=gone_is_missing,
            )
            self._commit(one)
            adopted += 1
        if adopted:
            facts = {
                "ticks": adopted,
                "up_to": self.watch.state.tick,
                "incomplete": self.watch.state.incomplete_ticks,
            }
            log.info("ticks_adopted", extra=facts)
        if self.watch.state.settings != self._parts.settings or not self.watch.state.tick:
            self._fresh_settings = self._parts.settings
            self.watch.use(self._parts.settings)

    # --- the loop --------------------------------------------------------------------------

    def step(self) -> bool:
        """One turn; whether there was anything to read."""
        found = self.runner.read(self._parts.wait_ms)
        now_s = time.monotonic()
        if self.watch.tally.held_bytes >= HELD_MAX_BYTES:
            self._next_tick_s = now_s + self._parts.tick_s
            self.tick()
            self._last_tick_s = now_s
        elif now_s >= self._next_tick_s:
            # What is still to be done rests on evidence that must not grow old.
            quiet = self.watch.tally.is_empty and not self._saved.pending
            quiet = quiet and now_s - self._last_tick_s < QUIET_TICK_S
            lacking = self.watch.lacks_routes and now_s < self._next_tick_s + LACKING_S
            if quiet or not lacking:
                self._next_tick_s = now_s + self._parts.tick_s
            if not quiet and not lacking:
                self.tick()
                self._last_tick_s = now_s
        self._act(now_s)
        if now_s >= self._next_lease_s:
            self._renew(now_s)
        if self._parts.status is not None and now_s >= self._next_status_s:
            self._next_status_s = now_s + EVERY_S
            state, stale_s = self.watch.state, self.runner.stale_s
            write_status(self._parts.status, state, self._saved.pending, stale_s, time.time_ns())
        self._writer.heartbeat()
        return found > 0

    def tick(self) -> None:
        """Close the open tick: fold, log, commit.

        Raises:
            SystemExit: the record did not get to disk in time; the next start finds out whether it did.
        """
        state, settings = self.watch.state, self._fresh_settings
        missing = list(self.watch.tally.missing)
        tick = Tick(state.tick + 1, time.time_ns(), self.runner.close())
        decisions = self.watch.close(tick, self.runner.fate)
        events: list[Event] = [tick_event(tick, state, settings, missing, self.watch.left_out)]
        events += [decision_event(decision, tick, state) for decision in decisions]
        events += [alarm_event(alarm, tick) for alarm in self.watch.alarms]
        seq = self._log(events, slim(events))
        self._fresh_settings = None
        for each in decisions:
            log.warning("decision", extra={"model": each.model, "cause": each.cause, "says": each.says})
        for alarm in self.watch.alarms:
            log.error("traffic_not_split_as_routed", extra={"model": alarm.model, "says": alarm.says})
        made = tuple((self._writer.event_id(seq + 1 + i), each) for i, each in enumerate(decisions))
        self._commit(Stored(tick, settings, made))
        stale_s = self.runner.stale_s
        self._read_until_ns = tick.at_ns - int(stale_s * 1e9) if math.isfinite(stale_s) else 0
        self._read_until_s = time.monotonic() - stale_s

    def close(self) -> None:
        """End the epoch; the open tick is not made."""
        self._feed.close()
        self._writer.close()
        self._parts.store.close()

    def _log(self, events: list[Event], slimmer: list[Event]) -> int:
        """Append and wait until it is on disk; returns the first number.

        Args:
            slimmer: as many, said shorter, where no frame takes the whole.
        """
        deadline = time.monotonic() + SYNC_S
        try:
            seq = self._writer.append_events(events)
        except FrameTooLarge as exc:
            log.warning("verdict_cut_short", extra={"why": str(exc)})
            events = slimmer
            seq = self._writer.append_events(events)
        while seq is None and time.monotonic() < deadline:
            time.sleep(0.005)
            seq = self._writer.append_events(events)
        mark = self._writer.ring.committed
        while seq is not None and not self._writer.synced(mark):
            if time.monotonic() > deadline:
                seq = None
                break
            time.sleep(0.002)
        if seq is None:
            log.error("verdict_not_logged")
            raise SystemExit(1)
        return seq

    def _commit(self, stored: Stored) -> None:
        saved, runner = self._saved, self.runner
        for event_id, decision in stored.decisions:
            if decision.action == "rollback" and not decision.dry_run:
                pending = Pending(
                    model=decision.model,
                    rollout=decision.rollout,
                    variant=decision.variant,
                    version=decision.versions[decision.variant],
                    says=decision.says,
                    event=event_id,
                )
                saved.pending.append(pending)
        saved.state = self.watch.state
        saved.cut = dict(runner.cut)
        if not runner.is_ahead:
            saved.feed = dict(runner.feed_positions)
        running = {(r.model, r.number) for r in saved.state.rollouts.active}
        saved.pending = [p for p in saved.pending if (p.model, p.rollout) in running]
        self._parts.store.commit()

    # --- acts ------------------------------------------------------------------------------

    def _act(self, now_s: float) -> None:
        for pending in list(self._saved.pending):
            if now_s < self._next_act_s.get(pending.event, 0.0):
                continue
            if (
                time.monotonic() - self._read_until_s
                > self._parts.settings.policy_of(pending.model).max_staleness_s
            ):
                # The next tick makes it young again, or shows that there is nothing to do.
                continue
            known = self.watch.state.rollouts.latest(pending.model)
            read_revision = 0 if known is None else known.revision
            acted = self._parts.actor.roll_back(pending, self._read_until_ns, read_revision)
            retry_s = REFUSED_S if acted.outcome == "refused" else RETRY_S
            self._next_act_s[pending.event] = now_s + retry_s
            if acted.outcome in {"done", "nothing_to_do"}:
                self._saved.pending.remove(pending)
                self._told.pop(pending.event, None)
                self._next_act_s.pop(pending.event, None)
                log.warning("rolled_back", extra={"model": pending.model, "outcome": acted.outcome})
            elif acted.outcome != "conflict":
                # In a conflict someone changed the route just now: it is looked at again, once that was read.
                self._tell(pending, acted)

    def _tell(self, pending: Pending, acted: Acted) -> None:
        """Raise an alarm about an act that was not done, once for each thing that stands in the way."""
        if self._told.get(pending.event) == acted.says:
            return
        self._told[pending.event] = acted.says
        says = f"{pending.model}: rollback of version {pending.version} {acted.outcome}: {acted.says}"
        says = says[:REASON_CHARS]
        body = {"what": "act", "outcome": acted.outcome, "decision": pending.event, "says": says}
        alarm: list[Event] = [Verdict(kind="alarm", at_ns=time.time_ns(), model=pending.model, body=body)]
        self._log(alarm, slim(alarm))
        log.error("rollback_not_done", extra={"says": says})

    def _renew(self, now_s: float) -> None:
        """Renew leases while this monitor is worth trusting: it reads the present, and its last tick was whole."""
        automatic = {
            model: policy for model, policy in self._parts.settings.policies.items() if policy.ramp == "auto"
        }
        shortest_s = min((policy.lease_s for policy in automatic.values()), default=30)
        self._next_lease_s = now_s + max(shortest_s / 3, 0.1)
        if not automatic or not self.watch.state.complete:
            return
        stale_s = self.runner.stale_s
        rollouts = self.watch.state.rollouts.active
        models = {
            model: frozenset(
                r.version for r in rollouts if r.model == model and (r.rolled_back or r.suspended)
            )
            for model, policy in automatic.items()
            if stale_s < policy.max_staleness_s
        }
        for model, acted in self._parts.actor.renew_leases(models).items():
            told = "" if acted.outcome == "done" else acted.says
            if self._told.get(f"lease {model}", "") != told:
                self._told[f"lease {model}"] = told
                log.warning("lease", extra={"model": model, "outcome": acted.outcome, "says": acted.says})


def _run(context: process.Context) -> int:
    config = configuration.decode(context.config)
    state_dir, ring_dir = context.state_path, Path(context.ring_dir)
    home = state_dir / "sidecar"
    home.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before a source is claimed: each claim is an epoch, and a broker may be away for days.
    if not await_topic(config, lambda: bool(stopping)):
        return 0
    source = claim_source(state_dir, context.gateway_id, "sidecar", ring_dir, SMALL_RING_BYTES)
    writer = Writer(source, context.gateway_id)
    own = sources_of(context.gateway_id, "sidecar")
    if not wait_drained(ring_dir, own, source.ring_path.name):
        log.warning("predecessor_not_drained")
        return 1
    parts = Parts(
        gateway_id=context.gateway_id,
        writer=writer,
        store=open_store(state_dir / STATE),
        bundles=Bundles(Path(context.models), lambda why: log.warning("bundle_not_read", extra={"why": why})),
        actor=Actor(context.admin_url, state_dir),
        feed=lambda positions: open_feed(config, state_dir / "spool", positions),
        settings=Settings(config.sidecar.clock, config.policy),
        tick_s=config.sidecar.tick_s,
        status=home / "status.json",
        wait_ms=int(IDLE_S * 1000) if config.sidecar.source == "kafka" else 0,
    )
    sidecar = Sidecar(parts)
    try:
        stored = stored_after(state_dir / "spool", own, parts.store.saved.cut)
        sidecar.adopt(stored, gone_is_missing=config.sidecar.source == "spool")
        while not stopping:
            if not sidecar.step():
                time.sleep(IDLE_S)
    finally:
        sidecar.close()
    return 0


def main() -> NoReturn:
    """Entry of the process."""
    context = process.enter()
    logs.setup("sidecar")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    process.lowest_priority()
    try:
        raise SystemExit(_run(context))
    except GatewayError as exc:
        log.error("stopped", extra={"why": str(exc)})  # noqa: TRY400
        raise SystemExit(1) from None
    except OSError as exc:
        log.error("stopped", extra={"why": exc.strerror, "todo": "is there room in the state directory?"})  # noqa: TRY400
        raise SystemExit(1) from None
    except sqlite3.Error as exc:
        if not set_aside(context.state_path / STATE, exc):
            log.error("stopped", extra={"why": f"{STATE}: {exc}"})  # noqa: TRY400
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
