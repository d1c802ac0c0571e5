"""`overload`: twice and ten times what a worker can do. Does it still do what it can, and say no quickly?

The model costs a millisecond a row (two hidden layers of 4096) and runs take at most 32 rows, so that capacity is one
number, whatever waits, and ten times of it is a rate that the generator can offer: what is measured is admission. Each
round measures capacity anew, then both loads. A bare loop gets the same arrivals beside: what its replies take is the
generator's and the kernel's.
"""

from __future__ import annotations

import msgspec

from bench import load, paired, report
from bench.cases import openly
from bench.cases.case import MLP, Bench, Case, counted_row, one_reply, roles_of
from bench.load import Plan
from bench.models import write_mlp
from bench.outcome import Outcome
from bench.partners import Bare
from bench.requests import Requests, Target
from bench.serving import Gateway

GOODPUT_MIN = {2: 0.90, 10: 0.80}
EXPIRED_MAX = 0.001
REFUSED_MS_MAX = 5.0
WIDTHS = (30, 4096, 4096, 2)
ROWS_MAX = 32
SATURATING = 2 * ROWS_MAX
"""Connections: one run goes while the next one waits."""
CONNECTIONS = 2048
READY = 512
"""Connections before the start: refusing is measured, not accepting."""


class Round(msgspec.Struct, frozen=True):
    """One load of both."""

    times: int
    capacity: float
    ours: Outcome
    bare: Outcome
    goodput: float
    """2xx a second / capacity."""
    expired: float
    """Accepted and not answered before their deadline, of all accepted."""
    refused_beyond_ms: float | None
    """p99 of refusals less p99 of the bare loop's replies; None: nothing was refused at once."""
    foreign_cpus: float


def overload(bench: Bench) -> Case:
    """Twice and ten times, in turn."""
    models = bench.scratch / "models"
    model_file = write_mlp(models, widths=WIDTHS)
    target = Target("mlp", (MLP,))
    found: list[Round] = []
    with (
        bench.gateway(models, settings=(f"batch.max_rows={ROWS_MAX}",)) as gateway,
        openly.pinned(bench),
    ):
        requests = bench.requests(target)
        wrk = bench.wrk(requests)
        (bench.scratch / "reply").write_bytes(one_reply(gateway, requests))
        with Bare(bench.scratch / "reply", bench.server_cpus) as bare:
            for number in range(bench.options.rounds):
                can = openly.capacity(bench, gateway, wrk, "mlp", SATURATING).per_second
                for times in GOODPUT_MIN if number % 2 else reversed(GOODPUT_MIN):
                    plan = openly.plan(
                        bench,
                        gateway.data_url,
                        target,
                        times * can,
                        model_file,
                        connections=CONNECTIONS,
                        ready=READY,
                    )
                    plan = msgspec.structs.replace(plan, seconds=2 * plan.seconds)
                    found.append(_round(times, can, gateway, bare.url, plan, requests))
                    bench.progress(f"round {number + 1}/{bench.options.rounds}, {_shown(found[-1])}")
    rows = [
        row for times in GOODPUT_MIN for row in _rows(times, [one for one in found if one.times == times])
    ]
    rows += [
        report.Row(
            "capacity, closed loop", report.interval([one.capacity for one in found]).text(0) + " requests/s"
        ),
        openly.honest_row([one for each in found for one in (each.ours, each.bare)]),
        paired.quiet(report.interval([one.foreign_cpus for one in found]).median),
        counted_row(sum(one.ours.checked for one in found), sum(one.ours.ok for one in found)),
    ]
    return Case(name="overload", title="more than a worker can do, open loop", rows=rows, details=found)


def _round(times: int, can: float, gateway: Gateway, bare_url: str, plan: Plan, requests: Requests) -> Round:
    bare = load.run(msgspec.structs.replace(plan, url=bare_url, model_file=None), requests=requests)
    watch = paired.Watch(roles_of(gateway))
    ours = load.run(plan, requests=requests)
    foreign = watch.stop()[1]
    beyond = None
    if ours.refused_ms is not None and bare.latency_ms is not None:
        beyond = ours.refused_ms.p99 - bare.latency_ms.p99
    share = ours.expired / max(1, ours.ok + ours.expired)
    return Round(times, can, ours, bare, ours.steady_per_second / can, share, beyond, foreign)


def _shown(one: Round) -> str:
    refused = "nothing refused at once"
    if one.refused_beyond_ms is not None:
        refused = f"refusals {one.refused_beyond_ms:+.2f} ms beyond a bare loop's"
    return f"{one.times} x: goodput {one.goodput:.2f} of capacity, {one.expired:.2%} expired, {refused}"


def _rows(times: int, found: list[Round]) -> list[report.Row]:
    latency_ms = report.interval(
        [one.ours.latency_ms.p99 for one in found if one.ours.latency_ms is not None]
    )
    goodput = report.interval([one.goodput for one in found])
    expired = report.interval([one.expired * 100 for one in found])
    beyond = [one.refused_beyond_ms for one in found if one.refused_beyond_ms is not None]
    name = f"{times} x: refusals' p99 beyond a bare loop's"
    refused = report.Row(name, "nothing was refused at once", f"<= {REFUSED_MS_MAX:g} ms", False)
    if beyond:
        refused = report.at_most(name, report.interval(beyond), REFUSED_MS_MAX, " ms")
    return [
        report.at_least(f"{times} x: goodput / capacity", goodput, GOODPUT_MIN[times], ""),
        report.at_most(f"{times} x: accepted, then expired", expired, EXPIRED_MAX * 100, " %", 3),
        refused,
        report.Row(f"{times} x: p99 of what was answered", latency_ms.text(1) + " ms"),
    ]
