"""`overload`: twice and ten times what a worker can do. Does it still do what it can, and say no quickly?

The model costs milliseconds a row (two hidden layers of 2048), so that ten times its capacity is a rate that the
generator can offer and refusing is cheap beside inferring: what is measured is admission. A bare loop gets the same
arrivals in the same round: what its replies take is the generator's and the kernel's.
"""

from __future__ import annotations

from typing import NamedTuple

from bench import load, paired, report
from bench.cases import openly
from bench.cases.case import MLP, Bench, Case, metric, one_reply, roles_of
from bench.load import Plan
from bench.models import write_mlp
from bench.outcome import Outcome
from bench.partners import Bare
from bench.requests import Requests, Target
from bench.serving import Gateway

GOODPUT_MIN = {2: 0.90, 10: 0.80}
EXPIRED_MAX = 0.001
REFUSED_MS_MAX = 5.0
WIDTHS = (30, 2048, 2048, 2)
CONNECTIONS = 2048
TIMEOUT_MS = 500


class Round(NamedTuple):
    """One load of both."""

    times: int
    ours: Outcome
    bare: Outcome
    goodput: float
    """2xx a second / capacity."""
    expired: float
    """Accepted and not answered before their deadline, of all accepted."""
    refused_beyond_ms: float
    """p99 of refusals less p99 of the bare loop's replies."""
    foreign_cpus: float


def overload(bench: Bench) -> Case:
    """Twice and ten times, in turn."""
    models = bench.scratch / "models"
    model_file = write_mlp(models, widths=WIDTHS)
    target = Target("mlp", (MLP,))
    found: list[Round] = []
    with (
        bench.gateway(models, settings=(f"data.request_timeout_ms={TIMEOUT_MS}",)) as gateway,
        openly.pinned(bench),
    ):
        requests = bench.requests(target)
        can = openly.capacity(bench, gateway, bench.wrk(requests), "mlp", bench.options.connections)
        (bench.scratch / "reply").write_bytes(one_reply(gateway, requests))
        with Bare(bench.scratch / "reply", bench.server_cpus) as bare:
            for number in range(bench.options.rounds):
                for times in GOODPUT_MIN if number % 2 else reversed(GOODPUT_MIN):
                    plan = openly.plan(
                        bench,
                        gateway.data_url,
                        target,
                        times * can.per_second,
                        model_file,
                        connections=CONNECTIONS,
                    )
                    one = _round(times, can.per_second, gateway, bare.url, plan, requests)
                    found.append(one)
                    bench.progress(
                        f"round {number + 1}/{bench.options.rounds}, {times} x: goodput {one.goodput:.2f} of capacity,"
                        f" {one.expired:.2%} expired, refusals {one.refused_beyond_ms:+.2f} ms beyond a bare loop's"
                    )
    rows = [
        row for times in GOODPUT_MIN for row in _rows(times, [one for one in found if one.times == times])
    ]
    rows += [
        report.Row("capacity, closed loop", f"{can.per_second:,.0f} requests/s"),
        openly.honest_row([one for each in found for one in (each.ours, each.bare)]),
        paired.quiet(report.interval([one.foreign_cpus for one in found]).median),
        report.Row(
            "replies compared with ONNX Runtime",
            f"{sum(one.ours.checked for one in found):,}, all equal",
            "1%",
            True,
        ),
    ]
    return Case(name="overload", title="more than a worker can do, open loop", rows=rows, details=found)


def _round(times: int, can: float, gateway: Gateway, bare_url: str, plan: Plan, requests: Requests) -> Round:
    def counted() -> dict[str, float]:
        return {
            kind: metric(gateway, "tidegate_requests_total", kind=kind)
            for kind in ("done", "failed", "expired")
        }

    bare = load.run(_at(plan, bare_url), requests=requests)
    before, watch = counted(), paired.Watch(roles_of(gateway))
    ours = load.run(plan, requests=requests)
    foreign = watch.stop()[1]
    accepted = {kind: value - before[kind] for kind, value in counted().items()}
    refused = ours.refused_ms.p99 if ours.refused_ms is not None else 0.0
    beyond = refused - (bare.latency_ms.p99 if bare.latency_ms is not None else 0.0)
    share = accepted["expired"] / max(1.0, sum(accepted.values()))
    return Round(times, ours, bare, ours.goodput_per_second / can, share, beyond, foreign)


def _at(plan: Plan, url: str) -> Plan:
    import msgspec

    return msgspec.structs.replace(plan, url=url, model_file=None)


def _rows(times: int, found: list[Round]) -> list[report.Row]:
    latency_ms = report.interval(
        [one.ours.latency_ms.p99 for one in found if one.ours.latency_ms is not None]
    )
    return [
        report.at_least(
            f"{times} x: goodput / capacity", report.interval([one.goodput for one in found]), GOODPUT_MIN[times], ""
        ),
        report.at_most(
            f"{times} x: accepted, then expired", report.interval([one.expired * 100 for one in found]),
            EXPIRED_MAX * 100, " %", 3,
        ),
        report.at_most(
            f"{times} x: refusals' p99 beyond a bare loop's",
            report.interval([one.refused_beyond_ms for one in found]), REFUSED_MS_MAX, " ms",
        ),
        report.Row(f"{times} x: p99 of what was answered", latency_ms.text(1) + " ms"),
    ]  # fmt: skip
