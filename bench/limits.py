"""Limits: the figures of the request path, each a case, each one command.

`bench limits --case NAME` runs one, `--all` runs them one after another. A case brings its own gateway, models and
partners and ends them; here stand their order, what becomes of one that cannot be measured, and how their results are
written into a page between its markers.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench import report
from bench.cases.append import append
from bench.cases.apply import apply
from bench.cases.beside import profiled, shadowed
from bench.cases.case import Bench, Case, Options
from bench.cases.flood import flood
from bench.cases.forwarder import forwarder
from bench.cases.kafka_away import kafka_away
from bench.cases.latency import latency, latency_squeezenet
from bench.cases.loading import loading
from bench.cases.memory import memory
from bench.cases.overload import overload
from bench.cases.pressure import append_pressure
from bench.cases.rows import rows32
from bench.cases.single import single, single_128, varying_heads
from bench.cases.stalls import stalls
from bench.cases.vision import squeezenet
from bench.cases.workers import workers2
from bench.load import demand_processors
from gateway.errors import ConfigInvalid

Measure = Callable[[Bench], Case]
CASES: Mapping[str, Measure] = {
    "single": single,
    "single-128": single_128,
    "varying-heads": varying_heads,
    "append": append,
    "append-pressure": append_pressure,
    "rows32": rows32,
    "squeezenet": squeezenet,
    "workers2": workers2,
    "latency": latency,
    "latency-squeezenet": latency_squeezenet,
    "loading": loading,
    "overload": overload,
    "apply": apply,
    "stalls": stalls,
    "flood": flood,
    "forwarder": forwarder,
    "kafka-away": kafka_away,
    "shadow": shadowed,
    "memory": memory,
    "profile": profiled,
}
ALIASES = {"rows32-json": "rows32", "rows32-binary": "rows32"}
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A run of cases, as it is kept in JSON."""

    at: str
    commit: str
    machine: report.Machine
    options: Options
    cases: list[Case]

    @property
    def met(self) -> bool:
        """No goal was missed."""
        return all(row.met is not False for case in self.cases for row in case.rows)


def measure(
    names: Sequence[str],
    options: Options,
    progress: Callable[[str], None] = lambda _: None,
    done: Callable[[Case], None] = lambda _: None,
) -> Result:
    """Run cases in order.

    Args:
        done: told of each case as it ends.

    Raises:
        ConfigInvalid: only one case was asked for and something that it needs is missing.
        ValueError, OSError: the same, for a wrong reply and for what did not answer. Of several cases the others go on.
    """
    demand_processors(server=options.server_cpu, generator=options.generator_cpu)
    cases: list[Case] = []
    for name in dict.fromkeys(ALIASES.get(name, name) for name in names):

        def say(line: str, name: str = name) -> None:
            progress(f"{name}: {line}")

        try:
            with tempfile.TemporaryDirectory(prefix=f"tidegate-{name}-") as scratch:
                case = CASES[name](Bench(options, Path(scratch), say))
        except (ConfigInvalid, ValueError, OSError, subprocess.SubprocessError) as exc:
            if len(names) == 1:
                raise
            missing = isinstance(exc, ConfigInvalid)
            row = report.Row("no figure", str(exc), "measured", None if missing else False)
            case = Case(name=name, title="not measured", rows=[row])
        cases.append(case)
        done(case)
    return Result(
        at=f"{datetime.now(UTC):%Y-%m-%d}",
        commit=report.commit(),
        machine=report.machine(),
        options=options,
        cases=cases,
    )


def print_result(result: Result) -> None:
    """One table of all figures."""
    rows = [
        report.Row(f"{case.name}: {row.name}", row.measured, row.goal, row.met, row.interval)
        for case in result.cases
        for row in case.rows
    ]
    title = result.cases[0].title if len(result.cases) == 1 else f"{len(result.cases)} cases"
    report.print_table(f"Limits: {title}; rounds of {result.options.seconds:g} s", rows, result.machine)


def demand_markers(page: str) -> None:
    """Raise ConfigInvalid unless a page has a place for figures: now rather than after an hour."""
    if END not in page.partition(BEGIN)[2]:
        msg = f"the page has no place for figures: expected a line {BEGIN} and below it a line {END}"
        raise ConfigInvalid(msg)


def written(page: str, result: Result) -> str:
    """A page with the results between its markers; sections of cases that were not measured stay.

    Raises:
        ConfigInvalid: the page has no markers.
    """
    demand_markers(page)
    before, _, rest = page.partition(BEGIN)
    block, _, after = rest.partition(END)
    sections = dict(_sections(block))
    sections |= {case.name: _section(case, result) for case in result.cases}
    ordered = [sections[name] for name in CASES if name in sections]
    return "\n".join((before + BEGIN, "", "\n\n".join(ordered), "", END + after))


def _sections(block: str) -> list[tuple[str, str]]:
    pieces = block.split("### `")[1:]
    return [(piece.partition("`")[0], f"### `{piece.strip()}") for piece in pieces]


def _section(case: Case, result: Result) -> str:
    options = result.options
    in_rounds = case.name not in {"memory", "profile", "kafka-away"}
    how = f"{options.rounds} rounds of {options.seconds:g} s" if in_rounds else ""
    facts = ", ".join(
        part for part in (result.at, f"commit {result.commit}" if result.commit else "", how) if part
    )
    return f"### `{case.name}`: {case.title}\n\n{report.markdown(case.rows)}\n\n{facts}. {result.machine.text()}."
