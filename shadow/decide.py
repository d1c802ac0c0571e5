"""Decide: from a rollout's evidence to what shall be done. Pure.

watch -> **decide** -> verdict event, act. Every rule reads counts and e-values of one rollout and the model's policy,
so that a replay of the log comes to the same. A cause is decided once a rollout. Evidence that two versions share
(an outage, a season) never comes here: all of it is canary against the control beside it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.settings import Policy
from shadow.detectors.relative import ShiftEvidence
from shadow.documents import Document
from shadow.harm import MICRO, OMEGA, hard_failure
from shadow.rollouts import BADNESS, Rollout

NAME_CHARS = 64
"""Of a name in a sentence; a whole sentence stays below 1,000."""
SUSPENDED = "held: traffic was not split as the route says, so that this may be false"
_WORDS = {"failed": "fails", "nonfinite": "gives values that are not finite", "wrong": "is wrong"}


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was concluded, with all that led to it. The body of a `verdict.decision` event."""

    model: str
    rollout: int
    tick: int
    action: str
    """rollback | hold | alert"""
    cause: str
    """harm.failed | harm.nonfinite | harm.wrong | drift.relative | hard_failure"""
    says: str
    observed_revision: int
    variant: str
    versions: dict[str, str]
    before_bp: dict[str, int]
    after_bp: dict[str, int]
    latched: tuple[str, ...]
    counts: dict[str, dict[str, float]]
    evidence: dict[str, float]
    labelled: float
    """Requests of the canary whose label had come due."""
    dry_run: bool = False


def decide(rollout: Rollout, document: Document, policy: Policy, tick: int, output: str) -> list[Decision]:
    """Decisions that the evidence now warrants and that were not made before; marks them as made.

    Args:
        document: the model's newest route.
        output: the output whose score is compared.
    """
    needed = 1.0 / policy.alpha
    found: list[tuple[str, str, str]] = []
    looks = sum(rollout.evidence[kind].ticks_with_evidence for kind in ("failed", "nonfinite"))
    if hard_failure([recent.counts for recent in rollout.recent], max(looks, 1), policy.alpha):
        found.append(("hard_failure", policy.on_harm, _says_hard(rollout)))
    for kind in BADNESS:
        evidence = rollout.evidence[kind]
        strong = OMEGA[kind] * evidence.evidence >= needed
        comparable = kind != "wrong" or rollout.labelled.is_even
        if strong and evidence.enough and comparable:
            found.append((f"harm.{kind}", policy.on_harm, _says_harm(rollout, kind, needed)))
    shift = rollout.shift
    if shift is not None and OMEGA["shift"] * shift.evidence >= needed and shift.enough:
        allowed = policy.shift_sd(rollout.version, output)
        says = _says_shift(rollout, shift, (output, allowed, needed))
        found.append(("drift.relative", policy.on_relative_drift, says))
    made = []
    for cause, action, says in found:
        if rollout.suspended:
            action, says = "hold", f"{says}; {SUSPENDED}"  # noqa: PLW2901
        # What was an alert, or a dry run, may be a rollback once the policy says so.
        done = f"{action} (dry run)" if policy.ramp == "dry-run" else action
        if rollout.decided.get(cause) == done or rollout.rolled_back:
            continue
        rollout.decided[cause] = done
        made.append(_decision(rollout, document, policy, tick, cause, action, says))
    return made


def summary(rollout: Rollout) -> dict[str, Any]:
    """Where a rollout stands, for people and for the tick's record."""
    return {
        "model": rollout.model,
        "rollout": rollout.number,
        "variant": rollout.variant,
        "version": rollout.version,
        "control_version": rollout.control_version,
        "requests": rollout.requests,
        "evidence": _evidence(rollout),
        "shift_sd": None if rollout.shift is None else rollout.shift.estimate_sd,
        "shift_error_sd": None if rollout.shift is None else rollout.shift.standard_error_sd,
        "labels_even": rollout.labelled.is_even,
        "decided": dict(rollout.decided),
        "suspended": rollout.suspended,
        "ended": rollout.ended,
    }


def _decision(
    rollout: Rollout, document: Document, policy: Policy, tick: int, cause: str, action: str, says: str
) -> Decision:
    before = {arm.name: arm.weight_bp for arm in document.arms if arm.role != "shadow"}
    after = dict(before)
    latched: tuple[str, ...] = ()
    if action == "rollback":
        after[document.primary.name] += after.get(rollout.variant, 0)
        after[rollout.variant] = 0
        latched = (rollout.version,)
    return Decision(
        model=rollout.model,
        rollout=rollout.number,
        tick=tick,
        action=action,
        cause=cause,
        says=says,
        observed_revision=document.revision,
        variant=rollout.variant,
        versions={"primary": rollout.control_version, rollout.variant: rollout.version},
        before_bp=before,
        after_bp=after,
        latched=latched,
        counts=_counts(rollout, cause),
        evidence={**_evidence(rollout), "needed": 1.0 / policy.alpha},
        labelled=rollout.evidence["wrong"].canary_requests / MICRO,
        dry_run=policy.ramp == "dry-run",
    )


def _evidence(rollout: Rollout) -> dict[str, float]:
    found = {kind: OMEGA[kind] * rollout.evidence[kind].evidence for kind in BADNESS}
    return {**found, "shift": 0.0 if rollout.shift is None else OMEGA["shift"] * rollout.shift.evidence}


def _counts(rollout: Rollout, cause: str) -> dict[str, dict[str, float]]:
    if cause == "drift.relative" and rollout.shift is not None:
        rows = sum(rollout.shift.canary) / MICRO, sum(rollout.shift.control) / MICRO
        return {"canary": {"rows": rows[0]}, "control": {"rows": rows[1]}}
    if cause == "hard_failure":
        canary, control = _recently(rollout)
        return {
            "canary": {"requests": canary[1], "bad": canary[0]},
            "control": {"requests": control[1], "bad": control[0]},
        }
    kind = cause.partition(".")[2]
    evidence = rollout.evidence[kind]
    return {
        "canary": {"requests": evidence.canary_requests / MICRO, "bad": evidence.canary_bad / MICRO},
        "control": {"requests": evidence.control_requests / MICRO, "bad": evidence.control_bad / MICRO},
    }


def _says_harm(rollout: Rollout, kind: str, needed: float) -> str:
    evidence = rollout.evidence[kind]
    ratio = evidence.ratio
    times = "where no answer did of" if ratio is None else f"{ratio:.1f}x as often as"
    return (
        f"version {_name(rollout.version)} {_WORDS[kind]} {times} version {_name(rollout.control_version)}"
        f" ({evidence.canary_bad / MICRO:g} of {evidence.canary_requests / MICRO:,.0f} against"
        f" {evidence.control_bad / MICRO:g} of {evidence.control_requests / MICRO:,.0f} at the same time);"
        f" evidence {_short(OMEGA[kind] * evidence.evidence)}, needed {_short(needed)}"
    )


def _recently(rollout: Rollout) -> tuple[tuple[float, float], tuple[float, float]]:
    """(bad, requests) of the canary and of the control lately."""
    counts = [recent.counts for recent in rollout.recent]
    canary = sum(c.canary_bad for c in counts) / MICRO, sum(c.canary_requests for c in counts) / MICRO
    control = sum(c.control_bad for c in counts) / MICRO, sum(c.control_requests for c in counts) / MICRO
    return canary, control


def _says_hard(rollout: Rollout) -> str:
    canary, control = _recently(rollout)
    return (
        f"version {_name(rollout.version)} failed {canary[0]:g} of its last {canary[1]:,.0f} requests,"
        f" over 20x as often as version {_name(rollout.control_version)}"
        f" beside it ({control[0]:g} of {control[1]:,.0f})"
    )


def _says_shift(rollout: Rollout, shift: ShiftEvidence, declared: tuple[str, float, float]) -> str:
    output, allowed, needed = declared
    estimate_sd = shift.estimate_sd or 0.0
    rows = sum(shift.canary) / MICRO, sum(shift.control) / MICRO
    return (
        f"{_name(output)} of version {_name(rollout.version)} is {abs(estimate_sd):.2f} sd"
        f" {'above' if estimate_sd > 0 else 'below'}"
        f" version {_name(rollout.control_version)}'s on the same traffic ({rows[0]:,.0f} rows against {rows[1]:,.0f});"
        f" allowed are {allowed:g} sd (max_shift_sd);"
        f" evidence {_short(OMEGA['shift'] * shift.evidence)}, needed {_short(needed)}"
    )


def _name(name: str) -> str:
    """As it stands in a sentence: whoever makes a bundle or writes the log may have made it very long."""
    return name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 1]}…"


def _short(value: float) -> str:
    """Three digits: 12.3, 4,570, 1.23e+18. Nobody reads more of an e-value."""
    if value < 1000:
        return f"{value:.3g}"
    return f"{float(f'{value:.3g}'):,.0f}" if value < 1e6 else f"{value:.3g}"
