"""Calibration: each peer's best settings, found by trying them, and kept with their reasons.

1, 2 and 4 workers, batching on and off, and what else an adapter offers: each is started, warmed up and saturated
three times with the cell that its model is known by; once where that is less than half of the best so far. The best
is the one whose whole tree answers most requests per processor second without an error; of those that come near to it,
the one with the fewest workers. `settings.json` beside this module holds what was found, by class of machine: a run
takes its settings from there, and whoever doubts one changes it and runs again.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench import report
from bench.peers import catalog
from bench.peers.choosing import chosen, disturbed
from bench.peers.figures import Chosen, How, Tried
from bench.peers.keeping import write_whole
from bench.peers.loads import Side, started
from bench.peers.peer import Peer, Say, Setting, Unavailable
from bench.peers.shortage import raise_short
from bench.peers.wording import one_line
from gateway.errors import ConfigInvalid

DISTINCT = 1_000
LOADS = 3
"""Of each setting; their median counts."""
COMMITTED = Path(__file__).resolve().parent / "settings.json"


class Calibrated(msgspec.Struct, kw_only=True):
    """What was found on one machine."""

    at: str
    machine: report.Machine
    peers: dict[str, dict[str, Chosen]] = {}
    """By peer, by model."""

    def get(self, peer: str, model: str) -> Chosen | None:
        """What was chosen for a peer and a model."""
        return self.peers.get(peer, {}).get(model)


class Settings(msgspec.Struct, kw_only=True):
    """settings.json."""

    classes: dict[str, Calibrated] = {}
    """By class of machine."""


def machine_class() -> str:
    """Machines of one class share settings: architecture and count of processors."""
    return f"{platform.machine()}, {os.cpu_count()} processors"


def fresh() -> Calibrated:
    """A calibration of this machine that holds nothing yet."""
    return Calibrated(at=f"{datetime.now(UTC):%Y-%m-%d}", machine=report.machine())


def read(file: Path) -> Settings:
    """Settings of a file; none where there is no file.

    Raises:
        ConfigInvalid: it is not such a file.
    """
    if not file.exists():
        return Settings()
    try:
        return msgspec.json.decode(file.read_bytes(), type=Settings)
    except (msgspec.DecodeError, OSError) as exc:
        msg = (
            f"{file}: no settings of peers ({exc}): write them anew with `bench peers calibrate --out {file}`"
        )
        raise ConfigInvalid(msg) from exc


def write(file: Path, found: Calibrated) -> None:
    """Put this machine class's settings into a file; other classes stay."""
    settings = read(file)
    settings.classes[machine_class()] = found
    encoded = msgspec.json.format(msgspec.json.encode(settings, order="deterministic"), indent=1)
    write_whole(file, encoded + b"\n")


def calibrate(peer: Peer, model: str, repository: Path, how: How, say: Say) -> Chosen:
    """Try a peer's settings with one model, and choose.

    Raises:
        Unavailable: none of them worked, with the last one's last lines.
    """
    tried: list[Tried] = []
    last: Unavailable | None = None
    for setting in peer.choices:
        try:
            best = max((one.per_cpu_s for one in tried if not one.why_not), default=0.0)
            found = _try(peer, model, repository, setting, how, best / 2)
        except Unavailable as exc:
            last, found = exc, Tried(setting=setting, why_not=one_line(exc.why))
        except (ValueError, OSError, subprocess.SubprocessError) as exc:
            raise_short(exc)
            found = Tried(setting=setting, why_not=one_line(str(exc))[:300])
        tried.append(found)
        shown = found.why_not or f"{found.per_cpu_s:,.0f} requests per CPU second{disturbed([found])}"
        say(f"{peer.name}, {model}: {setting.text()}: {shown}")
    if all(one.why_not for one in tried):
        raise last or Unavailable(peer.name, f"no setting serves {model}", tried[-1].why_not)
    return chosen(tried)


def _try(peer: Peer, model: str, repository: Path, setting: Setting, how: How, hopeless: float) -> Tried:
    """One setting; what answers less than `hopeless` requests a processor second is loaded once."""
    cell = catalog.CALIBRATED[model]
    if cell.form not in peer.forms:
        cell = msgspec.structs.replace(cell, form=next(iter(peer.forms)))
    with (
        tempfile.TemporaryDirectory(prefix="tidegate-load-") as scratch,
        started(peer, repository, model, setting, how, audit=False) as running,
    ):
        side = Side(
            peer, running, cell, repository, Path(scratch) / "load", generator_cpu=how.generator_cpu,
            distinct=min(how.distinct, DISTINCT),
        )  # fmt: skip
        side.warm_up()
        loads = [side.closed(how.seconds)]
        while len(loads) < LOADS and loads[0].per_cpu_s >= hopeless:
            loads.append(side.closed(how.seconds))
    failed, asked = sum(one.errors for one in loads), sum(one.errors + one.requests for one in loads)
    return Tried(
        setting=setting,
        per_cpu_s=statistics.median(one.per_cpu_s for one in loads),
        per_second=statistics.median(one.per_second for one in loads),
        p50_ms=statistics.median(one.p50_ms for one in loads),
        foreign_cpus=statistics.median(one.foreign_cpus for one in loads),
        why_not=f"{failed} of {asked} requests failed" if failed else "",
    )
