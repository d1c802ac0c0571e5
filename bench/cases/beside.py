"""`shadow` and `profile` as cases: measured by bench.beside and bench.profile, shown with the others."""

from __future__ import annotations

from bench import beside, report
from bench.cases.case import MLP, Bench, Case
from bench.paired import quiet
from bench.profile import profile
from bench.requests import Target


def shadowed(bench: Bench) -> Case:
    """What mirror and sidecar cost the worker that they follow."""
    options = beside.Options(
        seconds=bench.options.seconds, rounds=bench.options.rounds, connections=bench.options.connections
    )
    found = beside.measure(options, Target("mlp", (MLP,)), bench.progress)
    return Case(
        name="shadow",
        title="mirror and sidecar at work against stopped",
        rows=beside.rows(found),
        details=found,
    )


def profiled(bench: Bench) -> Case:
    """Where the microseconds go."""
    found = profile()
    rows = [
        report.Row(
            f"{part.stage or 'all'}: {part.what}", f"{part.us:.2f} us a request", interval=part.interval
        )
        for part in found.parts
    ]
    return Case(
        name="profile",
        title="one process without sockets, runs of 32",
        rows=[*rows, quiet(found.foreign_cpus)],
        details=found,
    )
