"""Load: `tidegate bench load`, a load of any running gateway that does not flatter it.

With a rate it is an open loop (bench.arrivals, bench.openloop): as many users as the rate says come whatever the server
does. Without one it is closed: so many connections, each sending when it has its answer, which finds the capacity.
requests are made first -> **load** runs them in one or more processes -> bench.outcome sums up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.arrivals import Law, schedule
from bench.check import Kept, check
from bench.openloop import EXPIRED, ClosedLoop, OpenLoop, Records
from bench.outcome import Outcome, outcome
from bench.pump import Connection, Pump, Server
from bench.requests import DISTINCT_REQUESTS, Made, Requests, Target, Tensor, read_bodies
from bench.serving import call
from gateway.errors import ConfigInvalid

CHECK_EVERY = 97
"""Prime to the count of distinct requests, so that each of them is checked once in a while: 1.03% of the replies."""
START_IN_NS = 50_000_000
CONNECT_NS = 1_000_000
_CODE = re.compile(rb'"code"\s*:\s*"([a-z0-9_]{1,64})"')


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One load."""

    url: str
    target: Target
    seconds: float
    per_second: float | None = None
    """None: a closed loop."""
    law: Law = "poisson"
    connections: int = 256
    """At most; an open loop makes only those that it needs, beyond the first ones."""
    ready: int = 32
    """Connections that are there before an open loop starts."""
    processes: int = 1
    distinct: int = DISTINCT_REQUESTS
    varying_heads: bool = False
    seed: int = 1
    bodies_file: str | None = None
    model_file: str | None = None
    """1% of the replies are compared with what this ONNX file says."""
    grace_s: float = 5.0
    """What has no answer so long after the end is unanswered."""


class Part(msgspec.Struct, frozen=True):
    """What one generator process brings home."""

    records: Any
    codes: dict[str, int]
    kept: list[Kept]
    cpus: float
    end_ns: int


def make_requests(plan: Plan, part: int = 0) -> Requests:
    """The requests of one generator process; each has its own."""
    bodies = None if plan.bodies_file is None else read_bodies(Path(plan.bodies_file))
    return Requests(
        plan.target,
        count=max(1, plan.distinct // plan.processes),
        varying_heads=plan.varying_heads,
        seed=plan.seed + part,
        bodies=bodies,
    )


def generate(
    plan: Plan,
    requests: Made,
    *,
    part: int = 0,
    passed: Callable[[float], None] = lambda _: None,
    start_ns: int | None = None,
) -> Part:
    """Throw one process's share of a plan.

    Args:
        start_ns: of `perf_counter_ns`; None: now.
    """
    codes: Counter[str] = Counter()
    kept: list[Kept] = []
    expired: list[int] = []

    def keep(number: int, status: int, head: bytes, body: bytes) -> None:
        if 200 <= status < 300:
            kept.append(Kept(number, head, body))
            return
        found = _CODE.search(body)
        if found and found[1] == b"deadline_exceeded":
            expired.append(number)
        codes[f"{status} {found[1].decode()}" if found else str(status)] += 1

    share = -(-plan.connections // plan.processes)
    ready = min(share, plan.ready)
    loop: Any
    if plan.per_second is None:
        loop = ClosedLoop[Connection](int(plan.seconds * 1e9), share)
    else:
        due_ns = schedule(plan.law, plan.per_second / plan.processes, plan.seconds, seed=plan.seed + part)
        loop = OpenLoop[Connection](due_ns, ())
    checked = range(part % CHECK_EVERY, 1 << 62, CHECK_EVERY) if plan.model_file else range(0)
    pump = Pump(Server(plan.url), requests.parts, connections=share, ready=ready, kept=keep, keep=checked)
    if start_ns is None:
        start_ns = time.perf_counter_ns() + START_IN_NS + ready * CONNECT_NS
    cpu_s, began_s = time.process_time(), time.perf_counter()
    pump.run(loop, start_ns, start_ns + int((plan.seconds + plan.grace_s) * 1e9), passed)
    cpus = (time.process_time() - cpu_s) / (time.perf_counter() - began_s)
    records = loop.records()
    records.status[expired] = EXPIRED
    return Part(records, dict(codes), kept, cpus, time.perf_counter_ns() - start_ns)


def run(
    plan: Plan, passed: Callable[[float], None] = lambda _: None, *, requests: Requests | None = None
) -> Outcome:
    """Run a plan and sum it up.

    Args:
        passed: told the share of the load that is over, some times a second.
        requests: those of the first process, where they are made already.

    Raises:
        ConfigInvalid: the target takes no made requests, or replies cannot be timed.
        ValueError: a reply was wrong.
    """
    requests = requests if requests is not None else make_requests(plan)
    parts = (
        [generate(plan, requests, passed=passed)] if plan.processes == 1 else _spread(plan, requests, passed)
    )
    checked = 0
    if plan.model_file is not None:
        for number, part in enumerate(parts):
            mine = requests if number == 0 else make_requests(plan, number)
            checked += check(Path(plan.model_file), mine, part.kept)
    codes: Counter[str] = Counter()
    for part in parts:
        codes.update(part.codes)
    return outcome(
        _joined([part.records for part in parts]),
        seconds=plan.seconds,
        end_ns=max(part.end_ns for part in parts),
        codes=codes,
        generator_cpus=max(part.cpus for part in parts),
        checked=checked,
    )


def _spread(plan: Plan, requests: Requests, passed: Callable[[float], None]) -> list[Part]:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(plan.processes)
    pipes, children = [], []
    for part in range(1, plan.processes):
        mine, theirs = spawn.Pipe(duplex=False)
        child = spawn.Process(target=_child, args=(plan, part, barrier, theirs), daemon=True)
        child.start()
        pipes.append(mine)
        children.append(child)
    barrier.wait(120)
    parts = [generate(plan, requests, passed=passed)]
    for pipe, child in zip(pipes, children, strict=True):
        if not pipe.poll(plan.seconds + plan.grace_s + 60):
            msg = "a generator process did not come back"
            raise TimeoutError(msg)
        parts.append(pipe.recv())
        child.join(10)
    return parts


def _child(plan: Plan, part: int, barrier: Any, pipe: Any) -> None:
    requests = make_requests(plan, part)
    barrier.wait(120)
    pipe.send(generate(plan, requests, part=part))


def _joined(found: list[Records]) -> Records:
    if len(found) == 1:
        return found[0]
    joined = Records(np.concatenate([one.due_ns for one in found]))
    for name in ("handed_ns", "sent_ns", "done_ns", "status"):
        setattr(joined, name, np.concatenate([getattr(one, name) for one in found]))
    return joined


def demand_processors(**cpus: int) -> None:
    """Raise ConfigInvalid unless this process may use the processor that each role is given (--ROLE-cpu)."""
    mine = os.sched_getaffinity(0)
    for role, cpu in cpus.items():
        if cpu not in mine:
            msg = (
                f"--{role}-cpu {cpu}: this process may use {', '.join(map(str, sorted(mine)))};"
                " servers and load need a processor each"
            )
            raise ConfigInvalid(msg)


@contextlib.contextmanager
def pinned_to(cpu: int) -> Iterator[None]:
    """Run this process on one processor, where it may use that one: an open loop's generator is in it."""
    before = os.sched_getaffinity(0)
    if cpu in before:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def target_of(url: str, model: str, *, rows: int, binary: bool) -> Target:
    """What a running gateway's metadata says a request of a model must be.

    Raises:
        ConfigInvalid: it knows no such model.
        OSError: nothing answers.
    """
    reply = call(url, "GET", f"/v2/models/{model}")
    if reply.status != 200 or not isinstance(reply.content, dict):
        msg = f"model {model}: the gateway says {reply.status}: {reply.content}; expected its metadata"
        raise ConfigInvalid(msg)
    inputs = msgspec.convert(reply.content["inputs"], tuple[Tensor, ...])
    return Target(model=model, inputs=inputs, rows=rows, form="binary" if binary else "json")
