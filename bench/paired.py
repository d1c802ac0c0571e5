"""Paired rounds: how figures that are ratios are made, for all cases alike.

Wall-clock figures of a shared machine say more about its neighbours than about us. Processor time per request, as a
ratio to a partner that runs beside and takes the same requests, repeats. Each round loads every side once, in an order
that turns from round to round; a figure is the median of the rounds' ratios with its sign-test interval. What others
took of the processors meanwhile is measured too: above 0.20 there is no figure.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench import report
from bench.check import CHECKED_SHARE, Kept
from bench.openloop import OpenLoop
from bench.pump import Connection, Pump, Server
from bench.requests import Made
from bench.serving import busy_s, cpu_s
from bench.wrk import Round, Wrk

SETTLE_S = 0.1
"""After a load, until the recorder has drained what the worker appended."""
MORE = 1.35
"""The checked requests end before the load does, and a load may be quicker than the one before."""
CHECKED_SEED = 1_000
"""The checked requests are others than those of the load."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One load of one side."""

    server_us: float
    """Processor time of the server (all workers) per request."""
    recorder_us: float = 0.0
    others_us: float = 0.0
    """Supervisor, control and sidecar."""
    foreign_cpus: float = 0.0
    """Processors that others took meanwhile."""
    requests: int = 0
    rows: int = 0
    server_s: float = 0.0
    per_second: float = 0.0
    p50_us: int = 0
    p99_us: int = 0

    @property
    def rows_per_cpu_s(self) -> float:
        """Rows that one processor second of the server answers."""
        return self.rows / self.server_s if self.server_s else 0.0


Pairs = Sequence[Mapping[str, Sample]]
"""Rounds: of each, every side's sample by name."""


def rounds(
    sides: Mapping[str, Callable[[], Sample]], count: int, progress: Callable[[str], None] = lambda _: None
) -> list[dict[str, Sample]]:
    """Load every side once a round; the order turns, and its direction changes."""
    names, done = list(sides), []
    for number in range(count):
        turn = number % len(names)
        order = names[turn:] + names[:turn]
        if number % 2:
            order.reverse()
        found = {name: sides[name]() for name in order}
        done.append({name: found[name] for name in names})
        shown = ", ".join(f"{name} {found[name].server_us:,.2f} us" for name in names)
        progress(f"round {number + 1}/{count}: {shown}")
    return done


def ratio(
    pairs: Pairs, top: Callable[[Mapping[str, Sample]], float], bottom: Callable[..., float]
) -> report.Interval:
    """Median of the rounds' ratios, with its interval."""
    return report.interval([top(pair) / bottom(pair) for pair in pairs])


def median(pairs: Pairs, side: str, what: str) -> float:
    """The median over the rounds of a side's value."""
    return report.interval([getattr(pair[side], what) for pair in pairs]).median


def busy_row(pairs: Pairs) -> report.Row:
    """What others took, and whether it was too much for a figure."""
    foreign = report.interval([max(sample.foreign_cpus for sample in pair.values()) for pair in pairs]).median
    return quiet(foreign)


def quiet(foreign_cpus: float) -> report.Row:
    """The guard: no figure from a busy machine."""
    return report.Row(
        "processors that others took meanwhile", f"{foreign_cpus:.2f}", f"<= {report.FOREIGN_CPUS_MAX:.2f}",
        foreign_cpus <= report.FOREIGN_CPUS_MAX,
    )  # fmt: skip


class Watch:
    """Processor time between its making and `stop`: of processes by role, and of everybody else.

    Args:
        roles: pids by the name of what they do.

    Children of this process that ended meanwhile (wrk) and this process itself are nobody else.
    """

    def __init__(self, roles: Mapping[str, Sequence[int]]) -> None:
        self._roles = roles
        self._before = self._now()
        self._busy = busy_s() - self._mine_s()
        self._started = time.monotonic()

    def stop(self) -> tuple[dict[str, float], float, float]:
        """Seconds by role, processors that others took, seconds of wall time."""
        wall_s = time.monotonic() - self._started
        now = self._now()
        spent = {role: now[role] - self._before[role] for role in self._roles}
        foreign_s = busy_s() - self._mine_s() - self._busy - sum(spent.values())
        return spent, max(0.0, foreign_s / wall_s), wall_s

    def _now(self) -> dict[str, float]:
        return {role: sum(map(cpu_s, pids)) for role, pids in self._roles.items()}

    @staticmethod
    def _mine_s() -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + ended.ru_utime + ended.ru_stime


class Checked:
    """A trickle of checked requests beside a load: 1% of its rate, on a connection of its own; kept for bench.check."""

    def __init__(self, url: str, requests: Made) -> None:
        self._server = Server(url)
        self._requests = requests
        self.kept: list[Kept] = []

    def run(self, per_second: float, seconds: float) -> None:
        """Send for so long, ending a little before the load does."""
        from bench.arrivals import schedule

        loop: OpenLoop[Connection] = OpenLoop(schedule("constant", per_second, seconds * 0.9), ())
        wanted = len(loop.records().due_ns)
        pump = Pump(
            self._server, self._requests.parts, connections=4, keep=frozenset(range(wanted)),
            kept=lambda number, status, head, body: self.kept.append(Kept(number, head, body)),
        )  # fmt: skip
        now = time.perf_counter_ns()
        pump.run(loop, now, now + int((seconds + 10) * 1e9))
        bad = int((loop.records().status != 200).sum())
        if bad:
            msg = f"{bad} of {wanted} checked requests were not answered with 200"
            raise ValueError(msg)


class Load:
    """A closed loop of one side, with checked requests beside.

    Args:
        roles: pids by role; `server` is what the figure is about.
        rows: of one request.
        checked: None: nothing is checked (partners that answer a constant).
    """

    def __init__(
        self,
        wrk: Wrk,
        url: str,
        roles: Mapping[str, Sequence[int]],
        *,
        connections: int,
        rows: int = 1,
        checked: Checked | None = None,
    ) -> None:
        self._wrk = wrk
        self._url = url
        self._roles = roles
        self._connections = connections
        self._rows = rows
        self._checked = checked
        self._per_second = 0.0
        self.requests = 0
        """Of all loads but the first, before which the rate of the checked ones is not known."""

    def run(self, seconds: float) -> Sample:
        """One load.

        Raises:
            ValueError: a request failed: then there is no figure.
        """
        beside = Beside(self._checked, self._per_second * CHECKED_SHARE * MORE, seconds)
        watch = Watch(self._roles)
        with beside:
            seen = self._wrk.run(self._url, connections=self._connections, seconds=seconds)
        time.sleep(SETTLE_S)
        spent, foreign, _ = watch.stop()
        demand_clean(seen)
        count = seen.requests + beside.count
        self.requests += count if self._per_second else 0
        self._per_second = seen.per_second
        each = 1e6 / count
        return Sample(
            server_us=spent["server"] * each,
            recorder_us=spent.get("recorder", 0.0) * each,
            others_us=spent.get("others", 0.0) * each,
            foreign_cpus=foreign,
            requests=count,
            rows=count * self._rows,
            server_s=spent["server"],
            per_second=seen.per_second,
            p50_us=seen.p50_us,
            p99_us=seen.p99_us,
        )


class Beside:
    """Runs the checked requests on a thread while wrk runs; raises what they raised when it is left.

    Args:
        checked: None: nothing runs.
        per_second: of checked requests; 0: nothing runs.
    """

    def __init__(self, checked: Checked | None, per_second: float, seconds: float) -> None:
        self._checked = checked if per_second > 0 else None
        self._error: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(per_second, seconds))
        self._before = len(checked.kept) if checked is not None else 0

    @property
    def count(self) -> int:
        """Requests that were sent."""
        return len(self._checked.kept) - self._before if self._checked is not None else 0

    def _run(self, per_second: float, seconds: float) -> None:
        try:
            self._checked.run(per_second, seconds)  # type: ignore[union-attr]
        except BaseException as exc:
            self._error.append(exc)

    def __enter__(self) -> None:
        if self._checked is not None:
            self._thread.start()

    def __exit__(self, *exc: object) -> None:
        if self._checked is not None:
            self._thread.join()
            if self._error:
                raise self._error[0]


def demand_clean(seen: Round) -> None:
    """Raise ValueError unless every request was answered with 2xx."""
    if seen.requests == 0 or seen.status_errors or seen.socket_errors:
        msg = (
            f"not a clean load: {seen.requests} requests, {seen.status_errors} not 2xx,"
            f" {seen.socket_errors} socket errors; expected only 2xx"
        )
        raise ValueError(msg)


def memory_mb(pid: int) -> dict[str, float]:
    """A process's resident memory in MB by kind: RssAnon, RssFile, RssShmem (rings), VmRSS (their sum)."""
    found: dict[str, Any] = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in {"VmRSS", "RssAnon", "RssFile", "RssShmem"}:
            found[name] = int(value.split()[0]) / 1024
    return found
