"""`flood`: a client that asks as fast as it is answered. Do the others notice?

One gateway with a limit for every address but the others' own. The others come as an open loop at a third of what the
worker can do; rounds with and without the flood beside them alternate, so that the same worker is compared with itself.
The flood has 64 connections from 127.0.0.2 and heeds no Retry-After. The generator of both is on one processor: what
the flood takes of it is in the others' latencies too.
"""

from __future__ import annotations

import msgspec

from bench import load, paired, report
from bench.cases import openly
from bench.cases.case import MLP, Bench, Case, roles_of
from bench.outcome import Outcome
from bench.partners import Flood
from bench.requests import Target

OTHERS_P99_MAX = 1.2
SHARE = 1 / 3
ALLOWED_PER_S = 100
SATURATING = 64
SETTINGS = (
    f'limits.default={{"per_s":{ALLOWED_PER_S}}}',
    'limits.principals={"127.0.0.1":{}}',
)


class Round(msgspec.Struct, frozen=True):
    """The others alone, and beside the flood."""

    alone: Outcome
    beside: Outcome
    got: dict[str, int]
    """What the flood got, by status."""
    foreign_cpus: float

    @property
    def ratio(self) -> float:
        """p99 of the others beside the flood / alone."""
        if self.alone.latency_ms is None or self.beside.latency_ms is None:
            return float("inf")
        return self.beside.latency_ms.p99 / self.alone.latency_ms.p99


def flood(bench: Bench) -> Case:
    """Pairs, in turn."""
    models = bench.mlp()
    target = Target("mlp", (MLP,))
    requests = bench.requests(target)
    body_file = bench.scratch / "flood-body"
    body_file.write_bytes(requests.parts[0][0].partition(b"\r\n\r\n")[2])
    found: list[Round] = []
    with bench.gateway(models, settings=SETTINGS) as gateway, openly.pinned(bench):
        can = openly.capacity(bench, gateway, bench.wrk(requests), "mlp", SATURATING).per_second
        plan = openly.plan(bench, gateway.data_url, target, SHARE * can, None)

        def beside() -> tuple[Outcome, dict[str, int]]:
            client = Flood(gateway.data_url, target.path, body_file, str(bench.options.generator_cpu))
            try:
                outcome = load.run(plan, requests=requests)
            finally:
                got = client.end()
            return outcome, got

        for number in range(bench.options.rounds):
            watch = paired.Watch(roles_of(gateway))
            if number % 2:
                flooded, got = beside()
                alone = load.run(plan, requests=requests)
            else:
                alone = load.run(plan, requests=requests)
                flooded, got = beside()
            found.append(Round(alone, flooded, got, watch.stop()[1]))
            bench.progress(
                f"round {number + 1}/{bench.options.rounds}: {found[-1].ratio:.2f} x, flood got {got}"
            )
    refused = sum(one.got.get("429", 0) for one in found) / max(
        1, sum(sum(one.got.values()) for one in found)
    )
    others = sum(sum(one.beside.errors.values()) for one in found)
    return Case(
        name="flood",
        title="a client that floods, and the others",
        rows=[
            report.at_most(
                "others' p99 beside the flood / alone",
                report.interval([one.ratio for one in found]),
                OTHERS_P99_MAX,
            ),
            report.Row("others that were not answered", str(others), "0", others == 0),
            report.Row("of the flood's requests refused with 429", f"{refused:.1%}"),
            openly.honest_row([one for each in found for one in (each.alone, each.beside)]),
            paired.quiet(report.interval([one.foreign_cpus for one in found]).median),
        ],
        details=found,
    )
