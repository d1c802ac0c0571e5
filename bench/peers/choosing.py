"""Choosing: which of the settings that were tried is a peer's best, and why. Pure.

calibration -> **choosing** -> settings.json, page.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.peers.figures import Chosen, Tried
from bench.report import FOREIGN_CPUS_MAX

NEAR = 0.95
"""What comes so near to the most is as good as it: then the fewest workers are taken, which memory and latency bear."""
AWAKE = 0.5
"""What answers less than this share of another's requests a second waits where it could work, and is not taken."""


def chosen(tried: Sequence[Tried]) -> Chosen:
    """The best of what was tried, with its reason in figures. At least one must have worked."""
    able = [one for one in tried if not one.why_not]
    quickest = max(one.per_second for one in able)
    awake = [one for one in able if one.per_second >= AWAKE * quickest]
    most = max(one.per_cpu_s for one in awake)
    near = [one for one in awake if one.per_cpu_s >= NEAR * most]
    best = min(near, key=lambda one: (one.setting.workers, -one.per_cpu_s))
    rest = [
        f"{one.setting.text()}: {one.why_not or format(one.per_cpu_s, ',.0f')}"
        for one in tried
        if one is not best
    ]
    reason = "; ".join([f"{best.per_cpu_s:,.0f} requests per CPU second{disturbed(tried)}", *rest])
    return Chosen(setting=best.setting, reason=reason, tried=list(tried))


def disturbed(tried: Sequence[Tried]) -> str:
    """What a reader must know of figures that were found on a busy machine."""
    most = max(one.foreign_cpus for one in tried)
    if most <= FOREIGN_CPUS_MAX:
        return ""
    return f" (others took up to {most:.2f} processors meanwhile: another run may choose otherwise)"
