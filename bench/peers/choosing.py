"""Choosing: which of the settings that were tried is a peer's best, and why. Pure.

calibration -> **choosing** -> settings.json, page.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.peers.figures import Chosen, Tried
from bench.peers.wording import one_line
from bench.report import FOREIGN_CPUS_MAX

NEAR = 0.95
"""What comes so near to the most is as good as it: then the fewest workers are taken, which memory and latency bear."""
AWAKE = 0.5
"""What answers less than this share of another's requests a second waits where it could work, and is not taken."""


def chosen(tried: Sequence[Tried]) -> Chosen:
    """The best of what was tried, with its reason in figures. At least one must have worked."""
    best = _best(tried)
    rest = [f"{one.setting.text()}: {_figure(one, best, tried)}" for one in tried if one is not best]
    reason = "; ".join([f"{_first(best)}{disturbed(tried)}", *rest])
    return Chosen(setting=best.setting, reason=reason, tried=list(tried))


def reason(of: Chosen) -> str:
    """Why a setting was chosen, as it would be said now; as it stands there where somebody else chose it."""
    if any(not one.why_not for one in of.tried):
        best = _best(of.tried)
        if best.setting == of.setting and of.reason.startswith(_first(best)):
            return chosen(of.tried).reason
    return one_line(of.reason)


def _best(tried: Sequence[Tried]) -> Tried:
    awake = [one for one in tried if not one.why_not and not _waits(one, tried)]
    most = max(one.per_cpu_s for one in awake)
    near = [one for one in awake if one.per_cpu_s >= NEAR * most]
    return min(near, key=lambda one: (one.setting.workers, -one.per_cpu_s))


def _waits(one: Tried, tried: Sequence[Tried]) -> bool:
    return one.per_second < AWAKE * max(other.per_second for other in tried if not other.why_not)


def _first(best: Tried) -> str:
    return f"{best.per_cpu_s:,.0f} requests per CPU second"


def _figure(one: Tried, best: Tried, tried: Sequence[Tried]) -> str:
    """What was found of a setting that was not chosen, and why it was not where the figure does not say so."""
    if one.why_not:
        return one_line(one.why_not)
    more = one.per_cpu_s > best.per_cpu_s
    # Who is busy answers as many a second as a processor second buys: what costs more does not wait.
    if _waits(one, tried) and (more or one.per_second < AWAKE * one.per_cpu_s):
        return f"{one.per_cpu_s:,.0f} (waits: {one.per_second:,.0f} a second)"
    return f"{one.per_cpu_s:,.0f}" + (
        " (not 5% more, of more workers)" if one.per_cpu_s > best.per_cpu_s else ""
    )


def disturbed(tried: Sequence[Tried]) -> str:
    """What a reader must know of figures that were found on a busy machine."""
    most = max(one.foreign_cpus for one in tried)
    if most <= FOREIGN_CPUS_MAX:
        return ""
    return f" (others took up to {most:.2f} processors meanwhile: another run may choose otherwise)"
