"""Loads: one side under one kind of load, and what it cost. Between a started server and a round of the comparison.

A closed loop (wrk, on the generator's processor) says what a processor second buys: the whole tree's time, recorder,
queues and daemons included. An open loop at a given rate says what a user waits. Both check 1% of the replies.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.check import CHECKED_SHARE
from bench.load import Plan, generate, pinned_to
from bench.outcome import counted as timed_of
from bench.outcome import outcome, took_ns
from bench.paired import CHECKED_SEED, MORE, Beside, Checked
from bench.peers.asking import Asked, WrongAnswer
from bench.peers.figures import Closed, How, Open
from bench.peers.memory import tree_bytes
from bench.peers.onnx_file import model_file_of
from bench.peers.peer import Begin, Cell, Peer, Running, Setting
from bench.peers.processes import Counted, counted, spent_s
from bench.peers.shortage import raise_short
from bench.requests import Target
from bench.serving import busy_s
from bench.wrk import Wrk, whole_seconds

CONNECTIONS = 32
CONNECTIONS_HEAVY = 4
"""For a model that runs one image at a time: more would only wait longer."""
HEAVY = frozenset(("squeezenet",))
CHECKED_DISTINCT = 100
CHECKED_MIN = 2
"""Of each closed loop, however slow its side is."""
OPEN_CONNECTIONS_MAX = 256
SLOWEST_SHARE = 0.01
BACKLOG_S = 5.0
"""A log's backlog is waited for, and charged, so long."""
_LOOK_S, _IDLE_S = 0.1, 0.02
"""A tree that takes no more processor time than the second between two looks has no backlog."""


class Fault(ValueError):
    """What went wrong with one side.

    Args:
        side: its name; "": both.
        wrong: it answered, and the answer was wrong.
    """

    def __init__(self, side: str, why: str, *, wrong: bool = False) -> None:
        super().__init__(why)
        self.side = side
        self.wrong = wrong


@contextlib.contextmanager
def blaming(side: str) -> Iterator[None]:
    """What goes wrong inside is this side's fault, but where this machine is short of something.

    Raises:
        Fault: it went wrong.
    """
    try:
        yield
    except Fault:
        raise
    except (ValueError, OSError, subprocess.SubprocessError) as exc:
        raise_short(exc)
        raise Fault(side, str(exc), wrong=isinstance(exc, WrongAnswer)) from exc


@contextlib.contextmanager
def started(
    peer: Peer, repository: Path, model: str, setting: Setting, how: How, *, audit: bool
) -> Iterator[Running]:
    """A server of a peer on the servers' processor, in a scratch directory of its own; ended afterwards.

    Raises:
        Unavailable: it did not start.
    """
    with tempfile.TemporaryDirectory(prefix=f"tidegate-{peer.name}-", ignore_cleanup_errors=True) as scratch:
        home = Path(scratch)
        begin = Begin(
            repository=repository, model=model, home=home, setting=setting, audit=audit, monitor=False,
            cpus=str(how.server_cpu),
        )  # fmt: skip
        running = peer.begin(begin)
        try:
            yield running
        finally:
            running.stop()


class Side:
    """One server and the requests of one cell in its own form.

    Args:
        scratch: a directory of this side and cell alone.
        generator_cpu: where the load runs.
        distinct: requests that are made; fewer where they are large.
    """

    def __init__(
        self, peer: Peer, running: Running, cell: Cell, repository: Path, scratch: Path, *,
        generator_cpu: int, distinct: int,
    ) -> None:  # fmt: skip
        self.peer = peer
        self._running = running
        self._cell = cell
        model_file = model_file_of(repository, cell.model)
        self._asked = Asked(peer, cell.model, model_file, form=cell.form, rows=cell.rows, count=distinct)
        self._small = Asked(
            peer, cell.model, model_file, form=cell.form, rows=cell.rows, count=CHECKED_DISTINCT,
            seed=CHECKED_SEED,
        )  # fmt: skip
        scratch.mkdir(parents=True)
        self._asked.write(scratch / "requests")
        self._wrk = Wrk(scratch, scratch / "requests", generator_cpu)
        self._generator_cpu = generator_cpu
        self._per_second = 0.0

    @property
    def connections(self) -> int:
        """Of the closed loop."""
        return CONNECTIONS_HEAVY if self._cell.model in HEAVY else CONNECTIONS

    def warm_up(self) -> None:
        """A second of load that counts nowhere."""
        seen = self._wrk.run(self._running.url, connections=self.connections, seconds=1)
        self._per_second = seen.per_second

    def memory_bytes(self) -> int:
        """Of the whole tree, now."""
        return tree_bytes(self._running.pids())

    def closed(self, seconds: float, others: Callable[[], Sequence[int]] = lambda: ()) -> Closed:
        """Saturate it, for whole seconds.

        Args:
            others: pids of servers that are no strangers (the other side's).

        Raises:
            WrongAnswer: as it says.
            ConnectionError: it could not be reached at all.
        """
        checked, whole_s = Checked(self._running.url, self._small), whole_seconds(seconds)
        checked_per_second = max(self._per_second * CHECKED_SHARE * MORE, CHECKED_MIN / whole_s)
        trickle = Beside(checked, checked_per_second, whole_s)
        watch = _Watch(self._running.pids, others)
        was_clean, seen = True, None
        with pinned_to(self._generator_cpu):
            try:
                with trickle:
                    seen = self._wrk.run(self._running.url, connections=self.connections, seconds=whole_s)
            except ValueError:
                # Some of the checked ones were refused, or had no answer: what was not told counts as one error.
                was_clean = False
        if seen is None:
            msg = f"{self.peer.name} could not be loaded at all"
            raise ConnectionError(msg)
        if self._cell.audit:
            # The log's own work is charged to whom it belongs, and is over before the other side is asked anything.
            work_off(self._running.pids)
        cpu_s, foreign = watch.stop()
        self._per_second = seen.per_second
        answered = [kept for kept in checked.kept if _is_ok(kept.head)]
        refused = 0 if was_clean else max(1, len(checked.kept) - len(answered))
        return Closed(
            requests=seen.requests - seen.status_errors + len(answered),
            errors=seen.status_errors + seen.socket_errors + refused,
            cpu_s=cpu_s,
            per_second=(seen.requests - seen.status_errors) / (seen.duration_us / 1e6),
            p50_ms=seen.p50_us / 1e3,
            foreign_cpus=foreign,
            checked=self._small.check(answered),
        )

    def open(
        self, per_second: float, seconds: float, seed: int = 1,
        others: Callable[[], Sequence[int]] = lambda: (),
    ) -> Open:  # fmt: skip
        """Offer so many a second, whatever comes back.

        Args:
            seed: of the times at which requests are due.
            others: as of `closed`.

        Raises:
            WrongAnswer: as it says.
        """
        plan = Plan(
            url=self._running.url, target=Target(self._cell.model, ()), seconds=seconds, per_second=per_second,
            connections=OPEN_CONNECTIONS_MAX, model_file="checked", grace_s=10.0, seed=seed,
        )  # fmt: skip
        watch = _Watch(self._running.pids, others)
        with pinned_to(self._generator_cpu):
            part = generate(plan, self._asked)
        if self._cell.audit:
            work_off(self._running.pids)
        _, foreign = watch.stop()
        right = self._asked.check(part.kept)
        seen = outcome(
            part.records, seconds=seconds, end_ns=part.end_ns, codes=part.codes, generator_cpus=part.cpus
        )
        timed_ns = took_ns(part.records, part.end_ns)[timed_of(part.records)]
        took_ms = sorted((timed_ns / 1e6).tolist(), reverse=True)
        latency = seen.latency_ms
        return Open(
            offered_per_second=seen.offered_per_second,
            requests=seen.requests,
            errors=seen.errors,
            p50_ms=latency.p50 if latency else None,
            p99_ms=latency.p99 if latency else None,
            p999_ms=latency.p999 if latency else None,
            timed=len(took_ms),
            foreign_cpus=foreign,
            slowest_ms=took_ms[: max(1, round(len(took_ms) * SLOWEST_SHARE))],
            generator_limited=seen.generator_limited,
            checked=right,
        )


def work_off(pids: Callable[[], Sequence[int]]) -> None:
    """Wait until a tree is idle: what its load left is done; for `BACKLOG_S` at most."""
    before, deadline = counted(pids()), time.monotonic() + BACKLOG_S
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        now = counted(pids())
        if spent_s(before, now) <= _IDLE_S:
            return
        before = now


def _is_ok(head: bytes) -> bool:
    return head.split(b" ", 2)[1][:1] == b"2"


class _Watch:
    """Processor seconds of a tree, and processors that strangers took, from its making to `stop`."""

    def __init__(self, mine: Callable[[], Sequence[int]], others: Callable[[], Sequence[int]]) -> None:
        self._mine, self._others = mine, others
        self._before = self._now()
        self._started = time.monotonic()

    def stop(self) -> tuple[float, float]:
        wall_s = time.monotonic() - self._started
        (mine, others, taken_s), (mine_then, others_then, taken_then_s) = self._now(), self._before
        mine_s, others_s = spent_s(mine_then, mine), spent_s(others_then, others)
        return mine_s, max(0.0, (taken_s - taken_then_s - mine_s - others_s) / wall_s)

    def _now(self) -> tuple[Counted, Counted, float]:
        """The tree, the others, and seconds of all but this process and what it waited for."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = time.process_time() + ended.ru_utime + ended.ru_stime
        return counted(self._mine()), counted(self._others()), busy_s() - ours
