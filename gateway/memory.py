"""The gateway's memory plan: what all workers and rings take, of what may be taken.

`tidegate serve` prints the sum before it starts and refuses when it is over; workers hold each version that they load
against the plan. Versions count with what their trial measured, those never tried with the size of their files.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from gateway.control import snapshot
from gateway.errors import SnapshotCorrupt, StateFormatNewer
from gateway.settings import Config
from loaders.errors import RepositoryMissing
from loaders.memory import Plan, limit_bytes
from loaders.repository import scan, version_directory
from loaders.verdicts import known_memory

SMALL_RINGS_BYTES = 4 * (4 << 20)
"""Of control, recorder, sidecar and mirror."""


class AtStart(NamedTuple):
    """The sum before the first process starts."""

    says: str
    fits: bool
    one_more: bool
    """Whether a rolling restart has room for one more worker at a time."""


def memory_plan(config: Config, *, more: int = 0) -> Plan:
    """What workers and rings may take together, with `more` workers than configured."""
    workers = config.workers + more
    return Plan(
        limit_bytes=config.session.memory_max_bytes or limit_bytes(),
        workers=workers,
        rings_bytes=workers * config.audit.ring_bytes + SMALL_RINGS_BYTES,
    )


def sum_at_start(config: Config, models: Path, state_dir: Path) -> AtStart:
    """What versions of the last snapshot, and the newest on disk, take in all workers; without and with one more."""
    wanted: set[tuple[str, str]] = set()
    with contextlib.suppress(RepositoryMissing):
        found = scan(models)
        wanted |= {(m, v) for m, vs in found.models.items() for v in found.chosen.get(m, vs[-1:])}
    with contextlib.suppress(OSError, SnapshotCorrupt, StateFormatNewer):
        serving = snapshot.decode_serving((state_dir / "control" / "snapshot").read_bytes())
        wanted |= {(d.model, d.version) for d in serving.versions}
    known = known_memory(state_dir / "trials")
    size = sum(known[key] if key in known else _file_bytes(version_directory(models, *key)) for key in wanted)
    plan, larger = memory_plan(config), memory_plan(config, more=1)
    fits, one_more = (each.refusal(0, size, 0) is None for each in (plan, larger))
    says = plan.says(size, len(wanted))
    if fits and not one_more:
        says += (
            f"; no room for one more worker ({larger.total(size) / 1e6:.0f} MB): a rolling restart takes each away"
            " before its successor comes"
        )
    return AtStart(says, fits, one_more)


def _file_bytes(directory: Path) -> int:
    try:
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    except OSError:
        return 0
