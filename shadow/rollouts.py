"""Rollouts: which version was on trial against which, as the log's control events tell. Watch stage; pure.

control events -> **rollouts** -> watch, decide. Evidence belongs to a rollout: it begins with a version's first weight
as a canary and ends with its promotion, weight 0, a latch or another primary, whoever changed the route. So evidence of
an earlier trial of the same version is never carried into the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from gateway.audit.event import Control
from shadow.detectors.bins import ScoreBins
from shadow.detectors.relative import ShiftEvidence
from shadow.documents import Arm, Document, documents_of
from shadow.harm import MICRO, ArmCounts, HarmEvidence

BADNESS = ("failed", "nonfinite", "wrong")
"""What can be bad about an answered request; each has evidence of its own."""
DOCUMENTS_KEPT = 200
ENDED_KEPT = 50
UNEVEN_SHARE, UNEVEN_SIGMAS = 0.02, 4.0
RECENT_NS = 10_000_000_000
SHIFT_UNITS_MAX = 10_000
"""Of so many routing keys a rollout the rows count for shift; those of further ones are left out."""
UNITS_KEPT = 500
"""Units of a rollout that are known to have been bad, of each kind; far more than a decision needs."""


class Recent(msgspec.Struct, frozen=True):
    """Failures (raised or not finite) of one tick, for the rule about hard failures."""

    at_ns: int
    counts: ArmCounts


class Labelled(msgspec.Struct):
    """Micro-requests of each arm whose horizon has passed, and those of them that have a label."""

    canary: int = 0
    canary_due: int = 0
    control: int = 0
    control_due: int = 0

    @property
    def is_even(self) -> bool:
        """Whether labels come for both arms alike: shares that differ by no more than 2 points and four standard
        errors. Where they do not, wrong answers are not comparable: an arm whose answers are looked at more often
        has more of them found wrong."""
        if not self.canary_due or not self.control_due:
            return True
        canary, control = self.canary / self.canary_due, self.control / self.control_due
        share = (self.canary + self.control) / (self.canary_due + self.control_due)
        each = share * (1 - share) * (MICRO / self.canary_due + MICRO / self.control_due)
        return abs(canary - control) <= UNEVEN_SHARE + UNEVEN_SIGMAS * math.sqrt(each)


class Rollout(msgspec.Struct):
    """One trial and its evidence.

    `number` is the revision that gave the version its first weight; with the model it names the rollout. `bins` are
    None until there is a reference (or enough rows of the control, gathered in `first_scores`).
    """

    model: str
    number: int
    variant: str
    version: str
    control_version: str
    ended: str | None = None
    """Why it is over: promoted | weight_zero | latched | primary_changed | removed"""
    evidence: dict[str, HarmEvidence] = msgspec.field(
        default_factory=lambda: {kind: HarmEvidence() for kind in BADNESS}
    )
    bins: ScoreBins | None = None
    shift: ShiftEvidence | None = None
    first_scores: list[float] = []
    recent: list[Recent] = []
    requests: int = 0
    """Of the canary, so far."""
    bad_units: dict[str, list[str]] = {}
    """By kind, the units of routing keys that count as bad already, the latest last."""
    shift_units: list[str] = []
    """Units of routing keys whose rows count for shift already."""
    labelled: Labelled = msgspec.field(default_factory=Labelled)
    decided: dict[str, str] = {}
    """Action by cause, marked where it was a dry run: each is decided once."""
    suspended: bool = False
    """Traffic was not split as the route says while it ran: nothing follows from what it saw."""

    def newly_bad(self, kind: str, *arms: Mapping[str, int]) -> list[int]:
        """What is bad in each arm (the canary's, the control's), less the units that were bad before; notes them.

        One bad event a unit: a sticky caller who repeats a bad input is drawn once, not each time.
        """
        known = self.bad_units.setdefault(kind, [])
        before = frozenset(known)
        sums = [sum(weight for unit, weight in arm.items() if unit not in before) for arm in arms]
        # Ids of events stand for what was drawn for one request: they do not come again.
        known += sorted({unit for arm in arms for unit in arm if unit not in before and "-" not in unit})
        del known[:-UNITS_KEPT]
        return sums

    def newly_seen(self, units: Iterable[str]) -> frozenset[str]:
        """Of some units of routing keys those whose rows may count for shift; notes them, no more than so many."""
        fresh = sorted({*units}.difference(self.shift_units))[: SHIFT_UNITS_MAX - len(self.shift_units)]
        self.shift_units += fresh
        return frozenset(fresh)

    @property
    def rolled_back(self) -> bool:
        """Whether a decision took its traffic away."""
        return "rollback" in self.decided.values()


class Rollouts(msgspec.Struct):
    """Routes by revision and the trials they make. The watch's state, stored with it."""

    documents: dict[str, dict[int, Document]] = {}
    active: list[Rollout] = []
    ended: list[Rollout] = []

    def knows(self, model: str, revision: int) -> bool:
        """Whether the route of that revision has been seen."""
        return revision in self.documents.get(model, {})

    def document(self, model: str, revision: int) -> Document | None:
        """The route as it was at a revision."""
        return self.documents.get(model, {}).get(revision)

    def latest(self, model: str) -> Document | None:
        """The newest known route of a model."""
        known = self.documents.get(model)
        return known[max(known)] if known else None

    def on_trial(self, document: Document, arm: Arm) -> Rollout | None:
        """The running rollout that a canary of that revision is part of."""
        for rollout in self.active:
            same = (rollout.model, rollout.variant, rollout.version) == (
                document.model,
                arm.name,
                arm.version,
            )
            if (
                same
                and rollout.number <= document.revision
                and rollout.control_version == document.primary.version
            ):
                return rollout
        return None

    def apply(self, event: Control) -> None:
        """Take a control event; kinds without a route change nothing."""
        for route in documents_of(event):
            known = self.documents.setdefault(route.model, {})
            if known and route.revision < min(known):
                continue
            is_newest = not known or route.revision > max(known)
            known[route.revision] = route
            for old in sorted(known)[:-DOCUMENTS_KEPT]:
                del known[old]
            if is_newest:
                self._follow(route)

    def _follow(self, route: Document) -> None:
        for rollout in [r for r in self.active if r.model == route.model]:
            rollout.ended = _ending(rollout, route)
            if rollout.ended is not None:
                self.active.remove(rollout)
                rollout.recent, rollout.bad_units, rollout.first_scores = [], {}, []
                rollout.shift_units = []
                self.ended.append(rollout)
                del self.ended[:-ENDED_KEPT]
        on_trial = {(r.variant, r.version) for r in self.active if r.model == route.model}
        for arm in route.canaries:
            if (arm.name, arm.version) not in on_trial and arm.version not in route.latched:
                self.active.append(
                    Rollout(
                        model=route.model,
                        number=route.revision,
                        variant=arm.name,
                        version=arm.version,
                        control_version=route.primary.version,
                    )
                )


def _ending(rollout: Rollout, route: Document) -> str | None:
    if rollout.version in route.latched:
        return "latched"
    still = [
        arm
        for arm in route.arms
        if (arm.name, arm.version, arm.role) == (rollout.variant, rollout.version, "canary")
    ]
    if route.primary.version != rollout.control_version:
        return "promoted" if route.primary.version == rollout.version else "primary_changed"
    if not still:
        return "removed"
    return None if still[0].weight_bp else "weight_zero"
