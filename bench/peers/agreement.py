"""Agreement: what two runs say of each other, and what must be known to read it.

JSON of two runs -> **agreement** -> `bench peers agree`. Where intervals overlap is summary's; here is what only one
run has, and what was not the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from bench import report
from bench.peers import summary
from bench.peers.figures import Result
from gateway.errors import ConfigInvalid


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs beside each other."""

    rows: tuple[report.Row, ...]
    """Cells that both have; met where their intervals overlap."""
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    """Cells that one has alone."""
    differences: tuple[str, ...]
    """What was not the same: commit, machine, loads, versions, settings."""


def compared(first: Result, second: Result) -> Agreement:
    """Compare two runs.

    Raises:
        ConfigInvalid: ours was pinned to the peers' settings in one of them alone.
    """
    if first.pinned != second.pinned:
        which = "first" if first.pinned else "second"
        msg = (
            f"ours was pinned to the others' settings in the {which} run alone (--ours-as-theirs): their ratios are of"
            " different things"
        )
        raise ConfigInvalid(msg)
    mine, theirs = _cells(first), _cells(second)
    return Agreement(
        rows=tuple(summary.agreement(first.found, second.found)),
        only_first=tuple(name for name in mine if name not in theirs),
        only_second=tuple(name for name in theirs if name not in mine),
        differences=tuple(_differences(first, second)),
    )


def _cells(result: Result) -> list[str]:
    return [f"{line.peer}, {line.cell.text()}" for line in summary.lines(result.found)]


def _differences(first: Result, second: Result) -> Iterator[str]:
    pairs: list[tuple[str, object, object]] = [
        ("commit", first.commit or "unknown", second.commit or "unknown"),
        ("machine", first.machine.text(), second.machine.text()),
    ]
    mine, theirs = (msgspec.structs.asdict(one.how) for one in (first, second))
    pairs += [(f"loads, {name}", mine[name], theirs[name]) for name in mine]
    pairs += [
        (f"{name}, version", about.version, second.peers[name].version)
        for name, about in first.peers.items()
        if name in second.peers
    ]
    others = {(pair.peer, pair.model): pair for pair in second.found.pairs}
    for pair in first.found.pairs:
        other = others.get((pair.peer, pair.model))
        if other is not None:
            name = f"{pair.peer}, {pair.model}"
            pairs.append((f"{name}, setting", pair.theirs.setting.text(), other.theirs.setting.text()))
            pairs.append((f"{name}, our setting", pair.ours.setting.text(), other.ours.setting.text()))
    for name, one, another in pairs:
        if one != another:
            yield f"{name}: {one} against {another}"
