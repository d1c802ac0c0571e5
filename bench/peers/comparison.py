"""Comparison: rounds of each peer's best against ours, on one machine, in one run.

settings (calibration) -> **comparison** -> summary -> page. For each peer, model and audit on or off both servers are
started and live on the servers' processor; each round then saturates both and offers both the same rate, half of what
the slower one can, in an order that turns. Cells of many rounds have them from more than one start, since what a start
happens to get (memory, ports, an order of processes) stays with it. Cold starts have rounds of their own. Everything
that is measured is kept at once (keeping), and what is kept is not measured again.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.peers import catalog
from bench.peers.asking import demand_right, feeds_of, session
from bench.peers.figures import Failed, Found, How, Measured, Pair, Round, Start
from bench.peers.keeping import Kept, digest, file_digest
from bench.peers.loads import Fault, Side, blaming, started
from bench.peers.onnx_file import model_file_of
from bench.peers.peer import Begin, Cell, Form, Peer, Running, Say, Setting, Unavailable
from bench.peers.posting import post
from bench.peers.probes.table import without_paths
from bench.peers.shortage import raise_short

HALF = 0.5
OPEN_REQUESTS = 500
OPEN_TIMES_MAX = 4
"""An open loop lasts until so many requests were due, at most so many times as long as a closed one."""
START_ROUNDS = 3
VERSIONED = frozenset(("mlp", "trees"))
"""Models of which there is a version whose answers differ."""
POLL_S = 0.01
VERSION_S = 180.0
Passed = Callable[[int, int], None]
"""Told how many of how many rounds are done."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be compared."""

    ours: Any
    peers: Sequence[Any]
    models: Sequence[str]
    versions: Mapping[str, str]
    """By peer; of those that were prepared."""
    how: How
    quick: bool = False
    rounds: int | None = None
    """Of each cell; None: as the catalog says."""

    def cells(self, peer: Peer, model: str) -> list[Cell]:
        """What is measured of a peer with a model."""
        return catalog.cells(model, peer, headline_only=self.quick)

    def count(self, cell: Cell) -> int:
        """Rounds of a cell."""
        return catalog.rounds_of(cell, quick=self.quick, given=self.rounds)


class Comparison:
    """Runs a job, keeping what it measures.

    Args:
        repository: with a first version of every model; others are made beside it.
        machine: facts that a figure depends on.
    """

    def __init__(
        self, job: Job, kept: Kept, repository: Path, *, machine: str, say: Say, passed: Passed
    ) -> None:
        self._job, self._kept, self._repository, self._machine = job, kept, repository, machine
        self._say, self._passed = say, passed
        self._models = {model: file_digest(model_file_of(repository, model)) for model in job.models}
        self._done = 0
        self._total = sum(
            job.count(cell) for peer in job.peers for model in job.models for cell in job.cells(peer, model)
        )
        self.found = Found()

    def run(self, pairs: Sequence[Pair]) -> Found:
        """Everything, one pair after another; what fails is found as failed and the rest goes on.

        Raises:
            ConfigInvalid: the code changed meanwhile: what was measured since then is not kept.
        """
        self._passed(0, self._total)
        by_name = {peer.name: peer for peer in self._job.peers}
        for pair in pairs:
            peer = by_name[pair.peer]
            self.found.pairs.append(pair)
            cells = self._job.cells(peer, pair.model)
            key = self._key(pair, "starts", pair.model)
            with self._failing(pair, f"{pair.model}: start", key):
                self._starts(peer, pair, ended=self._is_known_wrong(key))
            for audit in (True, False):
                mine = [cell for cell in cells if cell.audit is audit]
                if mine:
                    with self._failing(pair, f"{pair.model}, audit {'on' if audit else 'off'}"):
                        self._group(peer, pair, mine)
        self._kept.demand_same_code()
        return self.found

    @contextlib.contextmanager
    def _failing(self, pair: Pair, what: str, key: str = "") -> Any:
        """Find what fails inside as failed; a wrong answer is kept under a key, so that no run that goes on asks again
        until it is right."""
        try:
            yield
        except Unavailable as exc:
            self._fail(
                Failed(peer=pair.peer, side=exc.name, what=what, why=exc.why, last_lines=exc.last_lines)
            )
        except Fault as exc:
            found = Failed(peer=pair.peer, side=exc.side, what=what, why=str(exc), wrong=exc.wrong)
            if key and exc.wrong:
                self._kept.put("failed", key, found)
            self._fail(found)
        except (ValueError, OSError, subprocess.SubprocessError) as exc:
            raise_short(exc)
            self._fail(Failed(peer=pair.peer, what=what, why=str(exc)))

    def _fail(self, found: Failed) -> None:
        side = f" ({found.side})" if found.side not in {"", found.peer} else ""
        self._say(f"{found.peer}: {found.what}{side}: {found.why}")
        said = {"why": without_paths(found.why), "last_lines": without_paths(found.last_lines)}
        self.found.failed.append(msgspec.structs.replace(found, **said))

    def _is_known_wrong(self, key: str) -> bool:
        """Whether a wrong answer is kept under a key; then it is found again."""
        known = self._kept.get("failed", key, Failed)
        if known is not None:
            self._fail(known)
        return known is not None

    def _key(self, pair: Pair, *more: Any) -> str:
        job = self._job
        versions = (job.versions.get(pair.peer, ""), job.versions.get(job.ours.name, ""))
        what = (pair.peer, pair.theirs.setting, pair.ours.setting, versions, self._models[pair.model])
        return digest(*what, self._kept.code.of(pair.peer), self._machine, job.how, *more)

    def _group(self, peer: Peer, pair: Pair, cells: Sequence[Cell]) -> None:
        """All cells that one kind of start of both servers serves, each start with its rounds."""
        wanted = {
            (cell, number): self._key(pair, cell, number)
            for cell in cells
            for number in range(self._job.count(cell))
        }
        missing = []
        for (cell, number), key in wanted.items():
            known = self._kept.get("round", key, Round)
            if known is None:
                missing.append((cell, number, key))
            else:
                self._add(known)
        keys = {cell: self._key(pair, "cell", cell) for cell in cells}
        for key in keys.values():
            self._is_known_wrong(key)
        for sitting in sorted({number // catalog.ROUNDS_A_START for _, number, _ in missing}):
            its = [one for one in missing if one[1] // catalog.ROUNDS_A_START == sitting]
            # A wrong answer may have ended a cell in the sitting before.
            its = [one for one in its if self._kept.get("failed", keys[one[0]], Failed) is None]
            if its:
                self._sitting(peer, pair, its)

    def _sitting(self, peer: Peer, pair: Pair, missing: Sequence[tuple[Cell, int, str]]) -> None:
        """Rounds, by cell, number and key, of one start of both servers."""
        audit, how, ours = missing[0][0].audit, self._job.how, self._job.ours
        with (
            started(ours, self._repository, pair.model, pair.ours.setting, how, audit=audit) as mine,
            started(peer, self._repository, pair.model, pair.theirs.setting, how, audit=audit) as theirs,
        ):
            for cell in dict.fromkeys(cell for cell, _, _ in missing):
                with self._failing(pair, cell.text(), self._key(pair, "cell", cell)):
                    its = [(number, key) for one, number, key in missing if one == cell]
                    self._cell(cell, ((ours, mine), (peer, theirs)), its)

    def _cell(
        self, cell: Cell, servers: Sequence[tuple[Peer, Running]], wanted: Sequence[tuple[int, str]]
    ) -> None:
        """The missing rounds of one cell, by number and key."""
        how = self._job.how
        (ours, mine), (peer, theirs) = servers
        with tempfile.TemporaryDirectory(prefix="tidegate-load-") as scratch:
            sides = {}
            for one, running in servers:
                with blaming(one.name):
                    sides[one.name] = Side(
                        one, running, cell, self._repository, Path(scratch) / one.name,
                        generator_cpu=how.generator_cpu, distinct=how.distinct,
                    )  # fmt: skip
            for name, side in sides.items():
                with blaming(name):
                    side.warm_up()
            for number, key in wanted:
                others = {ours.name: theirs, peer.name: mine}
                measured = _round(sides, others, number, how.seconds, has_open=catalog.has_open(cell, number))
                found = Round(
                    peer=peer.name,
                    cell=cell,
                    number=number,
                    ours=measured[ours.name],
                    theirs=measured[peer.name],
                )
                self._kept.put("round", key, found)
                self._add(found)

    def _add(self, found: Round) -> None:
        self.found.rounds.append(found)
        self._done += 1
        self._passed(self._done, self._total)
        ours, theirs = found.ours.closed.per_cpu_s, found.theirs.closed.per_cpu_s
        times = f"{ours / theirs:.1f} x" if theirs else "no figure"
        self._say(
            f"{found.peer}: {found.cell.text()}: round {found.number + 1}: {ours:,.0f} / {theirs:,.0f}: {times}"
        )

    def _starts(self, peer: Peer, pair: Pair, *, ended: bool) -> None:
        """Starts of both sides; those that are kept alone where a wrong answer ended them."""
        sides = ((self._job.ours, pair.ours.setting), (peer, pair.theirs.setting))
        for number in range(1 if self._job.quick else START_ROUNDS):
            for one, setting in sides if number % 2 == 0 else sides[::-1]:
                key = self._key(pair, "start", pair.model, one.name, number)
                found = self._kept.get("start", key, Start)
                if found is None and ended:
                    return
                if found is None:
                    with blaming(one.name):
                        cold_s, version_s, refused = start(one, pair.model, setting, self._job.how)
                    found = Start(
                        peer=peer.name, side=one.name, model=pair.model, number=number, cold_s=cold_s,
                        version_s=version_s, refused=refused,
                    )  # fmt: skip
                    self._kept.put("start", key, found)
                self.found.starts.append(found)


def _round(
    sides: Mapping[str, Side], others: Mapping[str, Running], number: int, seconds: float, *, has_open: bool
) -> dict[str, Measured]:
    """Both sides, in an order that turns; the open loop offers both half of what the slower one can."""
    names = list(sides) if number % 2 == 0 else list(sides)[::-1]
    closed, memory, opened = {}, {}, dict.fromkeys(names)
    for name in names:
        with blaming(name):
            closed[name] = sides[name].closed(seconds, others[name].pids)
            memory[name] = sides[name].memory_bytes()
    rate = HALF * min(one.per_second for one in closed.values())
    if rate <= 0:
        msg = "; ".join(
            f"{name}: {one.errors} errors, {one.requests} answers" for name, one in closed.items()
        )
        silent = [name for name, one in closed.items() if one.per_second <= 0]
        raise Fault(silent[0] if len(silent) == 1 else "", f"a side answered nothing: {msg}")
    lasts_s = min(max(seconds, OPEN_REQUESTS / rate), OPEN_TIMES_MAX * seconds)
    for name in names if has_open else ():
        with blaming(name):
            opened[name] = sides[name].open(rate, lasts_s, number + 1, others[name].pids)
    return {
        name: Measured(closed=closed[name], open=opened[name], memory_bytes=memory[name]) for name in names
    }


def start(peer: Peer, model: str, setting: Setting, how: How) -> tuple[float, float | None, int]:
    """Start a peer and give it a new version: seconds to its first right prediction, and to the new version's first.

    Raises:
        Unavailable: it did not start.
        ValueError: its first prediction was wrong, or the new version never answered.
    """
    with tempfile.TemporaryDirectory(prefix="tidegate-start-", ignore_cleanup_errors=True) as scratch:
        repository, home = Path(scratch) / "models", Path(scratch) / "home"
        home.mkdir()
        first = catalog.write(repository, model)
        ran, feeds = session(first), feeds_of(first, 1, 0)
        form: Form = "json" if "json" in peer.forms else "binary"
        message = peer.message(model, feeds, form)
        began = time.monotonic()
        running = peer.begin(
            Begin(
                repository=repository, model=model, home=home, setting=setting, audit=True,
                cpus=str(how.server_cpu),
            )
        )  # fmt: skip
        try:
            demand_right(peer, ran, feeds, post(running.url, message))
            cold_s = time.monotonic() - began
            if model not in VERSIONED:
                return cold_s, None, 0
            catalog.write(repository, model, "2", 2)
            ran = session(model_file_of(repository, model, "2"))
            began = time.monotonic()
            running.new_version("2")
            refused = _await_version(peer, running, message, ran, feeds)
            return cold_s, time.monotonic() - began, refused
        finally:
            running.stop()


def _await_version(peer: Peer, running: Running, message: Any, ran: Any, feeds: Any) -> int:
    refused, deadline, why = 0, time.monotonic() + VERSION_S, "nothing"
    while time.monotonic() < deadline:
        try:
            answer = post(running.url, message, 5.0)
            refused += not 200 <= answer.status < 300
            demand_right(peer, ran, feeds, answer)
            return refused
        except OSError as exc:
            refused, why = refused + 1, str(exc)
        except ValueError as exc:
            why = str(exc)
        time.sleep(POLL_S)
    msg = f"version 2 did not answer within {VERSION_S:g} s; the last answer was: {why[:300]}"
    raise ValueError(msg)
