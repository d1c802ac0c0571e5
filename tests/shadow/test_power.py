"""What is printed before a stage: right against simulation, and honest about what cannot be found."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from shadow.detectors.relative import ScoreBins, ShiftCounts, ShiftEvidence
from shadow.harm import MICRO, OMEGA, ArmCounts, HarmEvidence, needed
from shadow.power import SHIFTS_SD, Stage, harm_requests, plan, shift_requests

BINS = ScoreBins.from_reference(np.random.default_rng(0).normal(size=20_000))


def stage(weight_bp: int = 1_000, base_rate: float = 0.005, **rest: float) -> Stage:
    """A stage at 100 requests a second."""
    return Stage(rate_per_s=100, weight_bp=weight_bp, base_rate=base_rate, **rest)


def simulated_harm(weight_bp: int, base_rate: float, canary_rate: float, tick: int, seed: int) -> float:
    """Requests until the evidence is there, in ticks of `tick` requests."""
    rng, evidence, seen = np.random.default_rng(seed), HarmEvidence(), 0
    while not (evidence.enough and evidence.evidence >= needed(OMEGA["failed"])):
        canary = int(rng.binomial(tick, weight_bp / 10_000))
        bad, other = rng.binomial(canary, canary_rate), rng.binomial(tick - canary, base_rate)
        counts = (canary, bad, tick - canary, other)
        evidence.fold(ArmCounts(weight_bp, *(int(n) * MICRO for n in counts)), 0.1)
        seen += tick
    return seen


def simulated_shift(weight_bp: int, shift_sd: float, tick: int, seed: int) -> float:
    """Requests until the evidence is there, in ticks of `tick` requests."""
    rng, evidence, seen = np.random.default_rng(seed), ShiftEvidence(BINS.scores), 0
    while evidence.evidence < needed(OMEGA["shift"]):
        drawn, scores = rng.random(tick) < weight_bp / 10_000, rng.normal(size=tick)
        canary, control = BINS.tally(scores[drawn] + shift_sd, MICRO), BINS.tally(scores[~drawn], MICRO)
        evidence.fold(ShiftCounts(weight_bp, canary.tolist(), control.tolist()), 0.05)
        seen += tick
    return seen


@pytest.mark.parametrize("weight_bp", [100, 1_000, 5_000])
@pytest.mark.parametrize("base_rate", [0.0005, 0.005, 0.1])
@pytest.mark.parametrize("ratio", [1.5, 2.0, 4.0])
def test_harm_is_found_when_it_is_said(weight_bp, base_rate, ratio) -> None:
    """The median of 61 rollouts is 0.6 to 1.2 of what is printed: it errs on the long side."""
    said = harm_requests(stage(weight_bp, base_rate), base_rate * ratio)
    tick = max(1, int(said / 50))
    found = statistics.median(
        simulated_harm(weight_bp, base_rate, base_rate * ratio, tick, seed) for seed in range(61)
    )
    assert 0.6 < found / said < 1.2


@pytest.mark.parametrize(
    ("weight_bp", "shift_sd"), [(1_000, 0.35), (1_000, 0.55), (5_000, 0.35), (100, 1.05)]
)
def test_a_shift_is_found_when_it_is_said(weight_bp, shift_sd) -> None:
    """The median of 41 rollouts is 0.7 to 1.3 of what is printed."""
    said = shift_requests(stage(weight_bp), shift_sd)
    found = statistics.median(
        simulated_shift(weight_bp, shift_sd, max(1, int(said / 30)), seed) for seed in range(41)
    )
    assert 0.7 < found / said < 1.3


def test_more_traffic_to_the_canary_finds_more() -> None:
    """A larger weight, a larger fault, a laxer alpha: each is found sooner."""
    assert harm_requests(stage(100), 0.01) > harm_requests(stage(1_000), 0.01)
    assert harm_requests(stage(), 0.01) > harm_requests(stage(), 0.02)
    assert harm_requests(stage(alpha=0.001), 0.01) > harm_requests(stage(alpha=0.05), 0.01)
    assert shift_requests(stage(100), 0.5) > shift_requests(stage(1_000), 0.5) > shift_requests(stage(), 1.0)


def test_what_is_allowed_is_never_found() -> None:
    """Inside the margin, under one in 10,000, or inside the tolerance: never, and so is said."""
    assert harm_requests(stage(), 0.005 * 1.1) is None
    assert harm_requests(stage(base_rate=0.0), 0.0001) is None
    assert harm_requests(stage(base_rate=0.0), 0.0) is None
    assert shift_requests(stage(), 0.05) is None


def test_a_canary_that_always_fails_takes_five_bad_requests() -> None:
    """Evidence comes at once; breadth is what is waited for."""
    assert harm_requests(stage(base_rate=0.0), 1.0) == pytest.approx(5 / 0.1, rel=0.1)


def test_a_plan_has_a_line_for_each_fault() -> None:
    """Ratios to a base rate where there is one, plain rates above it, shifts beyond the tolerance."""
    kinds = [(finding.kind, finding.size) for finding in plan(stage())]
    shifts = [("shift", size) for size in SHIFTS_SD]
    assert kinds == [("ratio", 1.5), ("ratio", 2.0), ("ratio", 4.0), ("rate", 1.0), *shifts]
    assert [finding.kind for finding in plan(stage(base_rate=0.0))][:2] == ["rate", "rate"]
    found = plan(stage())[1]
    assert found.minutes == pytest.approx(found.requests / 6_000, rel=1e-3)
