"""Features: every probe to every product, one table.

PEERS -> **probe_all** -> table. Servers are started as few times as the probes allow: those that need the same model
and log ask the same one, and what leaves a server behind that nobody else should ask comes last, on a fresh one. A
product that cannot be installed or started has a column that says why.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import report
from bench.peers.peer import Begin, Peer, Say, Unavailable
from bench.peers.probes import (
    answers,
    killed,
    loss,
    new_version,
    operation,
    protocol,
    recorded,
    refusals,
    traffic,
)
from bench.peers.probes import small_models as models
from bench.peers.probes.offered import known_of, not_offered
from bench.peers.probes.room import demand_room
from bench.peers.probes.started import Probe, Started, setting_of
from bench.peers.probes.table import Column, Row, Seen, Table, without_paths

PROBES: tuple[Probe, ...] = (
    *answers.PROBES, *protocol.PROBES, *refusals.PROBES, *operation.PROBES, *killed.PROBES, *new_version.PROBES,
    *traffic.PROBES, *recorded.PROBES, *loss.PROBES,
)  # fmt: skip
"""Those that leave another version behind come after those that count on the first."""
Progress = Callable[[int, int], None]
"""Probes done and in all."""


def probe_all(
    peers: Sequence[Peer],
    say: Say,
    *,
    probes: Sequence[Probe] = PROBES,
    progress: Progress = lambda _done, _all: None,
) -> Table:
    """Ask them all.

    Args:
        progress: told after each cell.

    Raises:
        OSError: this machine ran short of disk, files or memory: no answer of that time is a product's.
    Cost: a few minutes a product, most of it waiting.
    """
    done, count = 0, len(peers) * len(probes)
    columns, cells = [], {probe.name: dict[str, Seen]() for probe in probes}

    def tell() -> None:
        nonlocal done
        done += 1
        progress(done, count)

    for peer in peers:
        column = _column(peer, say)
        columns.append(column)
        if column.unavailable:
            done += len(probes)
            progress(done, count)
            continue
        for probe, seen in ask_one(peer, probes, say):
            cells[probe.name][peer.name] = seen
            say(f"{peer.name}: {probe.name}: {seen.answer}{': ' + seen.seen if seen.seen else ''}"[:200])
            tell()
    rows = [Row(probe.group, probe.name, probe.asks, cells[probe.name], probe.characters) for probe in probes]
    when = time.strftime("%Y-%m-%d", time.gmtime())
    return Table(tuple(columns), tuple(rows), f"Probed on {when}; {report.machine().text()}")


def _column(peer: Peer, say: Say) -> Column:
    try:
        return Column(peer.name, peer.title, peer.prepare(say))
    except Unavailable as exc:
        demand_room(exc)
        say(f"{peer.name}: {exc.why}")
        return Column(
            peer.name, peer.title, unavailable=without_paths(f"{exc.why}\n{exc.last_lines}".strip())
        )


def ask_one(peer: Peer, probes: Sequence[Probe], say: Say) -> Iterable[tuple[Probe, Seen]]:
    """One prepared product's answers, probe by probe; OSError where this machine ran short."""
    for probe in probes:
        if probe.ways and peer.name not in probe.ways:
            yield probe, _settled(peer, probe, None)
    asked = [probe for probe in probes if not probe.ways or peer.name in probe.ways]
    for needs in dict.fromkeys(probe.needs for probe in asked):
        together = [probe for probe in asked if probe.needs == needs]
        with _Server(peer, together[0], say) as server:
            for probe in sorted(together, key=lambda probe: probe.alone):
                yield probe, server.ask(probe)


class _Server:
    """A started server of one kind of need, started again where a probe left a broken one behind."""

    def __init__(self, peer: Peer, probe: Probe, say: Say) -> None:
        self._peer = peer
        self._needs = probe
        self._say = say
        self._scratch = tempfile.TemporaryDirectory(prefix="tidegate-probes-", ignore_cleanup_errors=True)
        self._starts = 0
        self._asked = False
        self._started: Started | None = None
        self._why = ""

    def ask(self, probe: Probe) -> Seen:
        """One probe's answer."""
        if probe.fresh and self._asked:
            self._end()
        if self._started is None:
            self._begin()
        self._asked = True
        if self._started is None:
            return _settled(self._peer, probe, Seen("no", self._why))
        try:
            seen = probe.run(self._started)
        except (OSError, ValueError, Unavailable) as exc:
            demand_room(exc)
            seen = Seen("no", f"{type(exc).__name__}: {exc}")
        except Exception as exc:
            demand_room(exc)
            # A defect of the probe, not of the product; the other cells are worth their quarter of an hour.
            seen = Seen("not seen", f"the probe failed: {exc!r}")
        demand_room(asks_disk=seen is not None and seen.answer != "yes")
        if probe.alone or not self._still_answers():
            self._end()
        return _settled(self._peer, probe, seen)

    def _still_answers(self) -> bool:
        started = self._started
        if started is None:
            return False
        with contextlib.suppress(OSError):
            return 200 <= started.ask(first_of(started.what.model)).status < 300
        return False

    def _begin(self) -> None:
        self._starts, self._asked = self._starts + 1, False
        place = Path(self._scratch.name) / str(self._starts)
        repository, home = place / "models", place / "home"
        home.mkdir(parents=True)
        write_models(repository, self._needs.model, self._needs.versions)
        what = Begin(
            repository=repository, model=self._needs.model, home=home, audit=self._needs.audit,
            one_by_one=self._needs.audit, setting=setting_of(self._peer, self._needs.workers),
        )  # fmt: skip
        try:
            self._started = Started(self._peer, what, self._peer.begin(what))
        except Unavailable as exc:
            demand_room(exc)
            last = exc.last_lines.strip().rpartition("\n")[2][-160:]
            self._why = f"it does not start with this model: {exc.why}{f': {last}' if last else ''}"
            self._say(f"{self._peer.name}: {self._needs.model}: {self._why}")

    def _end(self) -> None:
        if self._started is not None:
            self._started.running.stop()
        self._started = None

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()
        self._scratch.cleanup()


def _settled(peer: Peer, probe: Probe, seen: Seen | None) -> Seen:
    """A probe's answer; "not offered" where there was nothing to ask, and a page says so."""
    source = not_offered(peer.name, probe.group, probe.name)
    if seen is None:
        if source is None:
            return Seen("not seen", "there is no way of asking it")
        return Seen("not offered", source.says, source)
    said, known = without_paths(seen.seen), known_of(peer.name, probe.name)
    if seen.answer == "no" and seen.is_absent and source is not None:
        return Seen("not offered", f"{source.says}; seen: {said}" if said else source.says, source)
    if seen.answer == "no":
        # What was asked and measured stays a no: the page tells why it is one.
        return Seen("no", said, known or source)
    return Seen(seen.answer, said, known if seen.answer == "partly" else seen.source)


def write_models(repository: Path, model: str, versions: Iterable[int]) -> None:
    """What a probe needs in the repository."""
    if model.startswith("id_"):
        models.write_identity(repository, model.removeprefix("id_"))
    elif model == "slow":
        models.write_slow(repository)
    else:
        for version in versions:
            models.write_not_finite(repository) if version == 3 else models.write_scale(repository, version)


def first_of(model: str) -> NDArray[Any]:
    """A right request's input."""
    shape = (1, 2) if model.startswith("id_") else (1, 4)
    return np.ones(shape, np.int64 if model == "id_int64" else np.float32)
