"""`stalls`: how long the worker's event loop does not turn while it is saturated, against a bare loop beside it.

Two probes a hundred times a second each: one asks the saturated worker whether it lives, the other asks a bare loop on
the same processor, at the same time. What the machine does to both (another process has the processor) is in both; the
longest answer of the worker less the longest of the bare loop is the loop's own. The first holds its queue too.
"""

from __future__ import annotations

import sys
import threading
import time

import msgspec
import numpy as np

from bench import paired, report
from bench.arrivals import schedule
from bench.cases import openly
from bench.cases.case import MLP, Bench, Case, roles_of
from bench.openloop import OpenLoop, Records
from bench.paired import demand_clean
from bench.partners import Bare
from bench.pump import Connection, Pump, Server
from bench.requests import Target
from bench.wrk import Round as WrkRound
from bench.wrk import Wrk

BEYOND_MS_MAX = 50.0
PROBES_PER_S = 100.0
UNANSWERED_S = 5.0
_PROBE = b"GET /v2/health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


class Round(msgspec.Struct, frozen=True):
    """One saturated load."""

    ours_ms: float
    bare_ms: float
    foreign_cpus: float


def stalls(bench: Bench) -> Case:
    """Loads of the usual kind, both probed."""
    options, models = bench.options, bench.mlp()
    (bench.scratch / "reply").write_bytes(b"{}")
    found: list[Round] = []
    with (
        bench.gateway(models) as gateway,
        Bare(bench.scratch / "reply", bench.server_cpus) as bare,
        openly.pinned(bench),
    ):
        wrk = bench.wrk(bench.requests(Target("mlp", (MLP,))))
        wrk.run(gateway.data_url, connections=options.connections, seconds=1)
        for number in range(options.rounds):
            watch = paired.Watch({**roles_of(gateway), "bare": [bare.pid]})
            ours, theirs = _probed(
                wrk, gateway.data_url, bare.url, options.connections, max(1.0, options.seconds)
            )
            found.append(Round(ours, theirs, watch.stop()[1]))
            bench.progress(f"round {number + 1}/{options.rounds}: {ours:.1f} ms, bare loop {theirs:.1f} ms")
    beyond = report.interval([one.ours_ms - one.bare_ms for one in found])
    rows = [
        report.at_most("longest stall beyond a bare loop's beside it", beyond, BEYOND_MS_MAX, " ms", 1),
        report.Row(
            "longest answer of the worker", f"{report.interval([one.ours_ms for one in found]).text(1)} ms"
        ),
        report.Row(
            "longest answer of the bare loop", f"{report.interval([one.bare_ms for one in found]).text(1)} ms"
        ),
        report.Row(
            "longest of all rounds",
            f"{max(one.ours_ms for one in found):.1f} ms, bare {max(one.bare_ms for one in found):.1f} ms",
        ),
        paired.quiet(report.interval([one.foreign_cpus for one in found]).median),
    ]
    return Case(name="stalls", title="stalls of the event loop under saturation", rows=rows, details=found)


def _probed(wrk: Wrk, ours: str, bare: str, connections: int, seconds: float) -> tuple[float, float]:
    """Longest answers in ms, of the worker and of the bare loop, while wrk saturates the worker."""
    seen: list[WrkRound] = []
    saturate = threading.Thread(
        target=lambda: seen.append(wrk.run(ours, connections=connections, seconds=seconds))
    )
    longest: dict[str, float] = {}

    def probe(url: str) -> None:
        loop: OpenLoop[Connection] = OpenLoop(schedule("constant", PROBES_PER_S, seconds * 0.8), ())
        pump = Pump(Server(url), [(_PROBE,)], connections=8)
        now = time.perf_counter_ns()
        pump.run(loop, now, now + int((seconds + UNANSWERED_S) * 1e9))
        longest[url] = _longest_ms(loop.records(), time.perf_counter_ns() - now)

    probes = [threading.Thread(target=probe, args=(url,)) for url in (ours, bare)]
    # The probes share an interpreter: one must not wait five milliseconds for the other.
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        saturate.start()
        time.sleep(0.1 * seconds)
        for thread in probes:
            thread.start()
        for thread in (*probes, saturate):
            thread.join()
    finally:
        sys.setswitchinterval(switch_s)
    demand_clean(seen[0])
    return longest[ours], longest[bare]


def _longest_ms(records: Records, end_ns: int) -> float:
    """From handed over, not from due: the generator's own lag is no stall of anybody's. No answer is the longest."""
    done_ns = np.where(records.done_ns >= 0, records.done_ns, end_ns)
    handed = records.handed_ns >= 0
    return float(np.max((done_ns - records.handed_ns)[handed])) / 1e6
