"""Healthy canaries are left alone, and bad ones are found on the same streams.

Whole rollouts in simulation, through the interface that decides: each null stands beside the power that
makes it mean something, for a detector that says nothing would pass every null.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest

from shadow.detectors.relative import ScoreBins, ShiftCounts, ShiftEvidence
from shadow.harm import MICRO, OMEGA, ArmCounts, HarmEvidence, hard_failure, needed
from shadow.power import Stage, harm_requests, shift_requests

WEIGHT_BP, WEIGHT = 1_000, 0.1
TICK_REQUESTS = 1_000
BASE_RATE, MARGIN, TOLERANCE_SD = 0.01, 0.1, 0.05
STAGE = Stage(rate_per_s=100, weight_bp=WEIGHT_BP, base_rate=BASE_RATE)
SEEDS = range(60)
BINS = ScoreBins.from_reference(np.random.default_rng(0).normal(size=20_000))


class Stream(NamedTuple):
    """What happens to both versions alike in each tick: the share of bad requests, the swing of scores."""

    bad_rates: np.ndarray
    swings_sd: np.ndarray


def stream(kind: str, ticks: int) -> Stream:
    """Traffic that is calm, has an incident of a third of the time at six times the base, or swings."""
    at = np.arange(ticks)
    bad, swing = np.full(ticks, BASE_RATE), np.zeros(ticks)
    if kind == "incidents":
        bad[(at % 15) >= 10] *= 6
    if kind == "swings":
        swing = 0.5 * np.sin(at / 3) + 0.5 * (at > ticks / 2)
    return Stream(bad, swing)


def harm_ticks(rng: np.random.Generator, shared: Stream, ratio: float) -> Iterator[ArmCounts]:
    """Counts of a canary that is bad `ratio` times as often."""
    for rate in shared.bad_rates:
        canary = rng.binomial(TICK_REQUESTS, WEIGHT)
        bad = rng.binomial(canary, min(1.0, rate * ratio))
        control_bad = rng.binomial(TICK_REQUESTS - canary, rate)
        counts = (canary, bad, TICK_REQUESTS - canary, control_bad)
        yield ArmCounts(WEIGHT_BP, *(int(n) * MICRO for n in counts))


def shift_ticks(rng: np.random.Generator, shared: Stream, shift_sd: float) -> Iterator[ShiftCounts]:
    """Counts of a canary whose scores are `shift_sd` higher."""
    for swing in shared.swings_sd:
        drawn = rng.random(TICK_REQUESTS) < WEIGHT
        scores = rng.normal(size=TICK_REQUESTS) + swing
        canary, control = BINS.tally(scores[drawn] + shift_sd, MICRO), BINS.tally(scores[~drawn], MICRO)
        yield ShiftCounts(WEIGHT_BP, canary.tolist(), control.tolist())


def harm_found(
    seed: int, shared: Stream, ratio: float, make: Callable[[], HarmEvidence] = HarmEvidence
) -> int | None:
    """The request at which the canary is rolled back; None when it never is."""
    evidence, threshold = make(), needed(OMEGA["failed"])
    for tick, counts in enumerate(harm_ticks(np.random.default_rng(seed), shared, ratio), 1):
        evidence.fold(counts, MARGIN)
        if evidence.enough and evidence.evidence >= threshold:
            return tick * TICK_REQUESTS
    return None


def shift_found(
    seed: int, shared: Stream, shift_sd: float, make: Callable[[list[float]], ShiftEvidence] = ShiftEvidence
) -> int | None:
    """The request at which the canary is rolled back for its scores; None when it never is."""
    evidence, threshold = make(BINS.scores), needed(OMEGA["shift"])
    for tick, counts in enumerate(shift_ticks(np.random.default_rng(seed), shared, shift_sd), 1):
        evidence.fold(counts, TOLERANCE_SD)
        if evidence.enough and evidence.evidence >= threshold:
            return tick * TICK_REQUESTS
    return None


def median(found: list[int | None]) -> float:
    """The median request; infinite when half of the runs found nothing."""
    return statistics.median(float("inf") if at is None else at for at in found)


class MuteHarm(HarmEvidence):
    """A detector that never says anything."""

    @property
    def evidence(self) -> float:
        return 1.0


class MuteShift(ShiftEvidence):
    """A detector that never says anything."""

    @property
    def evidence(self) -> float:
        return 1.0


@pytest.mark.parametrize("kind", ["calm", "incidents"])
def test_a_healthy_canary_is_not_rolled_back_for_harm(kind) -> None:
    """60 rollouts of 20,000 requests, calm or with incidents that both versions share: none."""
    assert [seed for seed in SEEDS if harm_found(seed, stream(kind, 20), 1.0)] == []


@pytest.mark.parametrize("kind", ["calm", "incidents"])
def test_no_hard_failure_in_a_healthy_canary(kind) -> None:
    """The same 60 rollouts hold no ten seconds that look like a version that plainly fails."""
    for seed in SEEDS:
        for counts in harm_ticks(np.random.default_rng(seed), stream(kind, 20), 1.0):
            assert not hard_failure([counts])


@pytest.mark.parametrize("kind", ["calm", "swings"])
def test_a_healthy_canary_is_not_rolled_back_for_its_scores(kind) -> None:
    """60 rollouts of 20,000 requests, calm or under swings and a step that both versions share: none."""
    assert [seed for seed in SEEDS if shift_found(seed, stream(kind, 20), 0.0)] == []


@pytest.mark.parametrize("kind", ["calm", "incidents"])
@pytest.mark.parametrize(("make", "finds"), [(HarmEvidence, True), (MuteHarm, False)])
def test_twice_the_harm_is_found_when_power_says(kind, make, finds) -> None:
    """Twice as bad on the same streams: in the median by the time that is printed. A mute detector fails."""
    printed = harm_requests(STAGE, 2 * BASE_RATE)
    found = median([harm_found(seed, stream(kind, 120), 2.0, make) for seed in SEEDS])
    assert (found <= printed + TICK_REQUESTS) is finds
    assert found > printed / 10


@pytest.mark.parametrize(("kind", "factor"), [("calm", 1.0), ("swings", 2.0)])
@pytest.mark.parametrize(("make", "finds"), [(ShiftEvidence, True), (MuteShift, False)])
def test_a_shift_of_half_an_sd_is_found_when_power_says(kind, factor, make, finds) -> None:
    """Half an sd on the same streams: by the time that is printed, twice it under swings. Mute fails."""
    printed = shift_requests(STAGE, 0.5)
    found = median([shift_found(seed, stream(kind, 20), 0.5, make) for seed in SEEDS])
    assert (found <= factor * printed + TICK_REQUESTS) is finds


def test_a_canary_at_exactly_the_margin_is_left_alone() -> None:
    """500 rollouts of 100,000 requests, exactly 10% worse, with incidents: at most 1% rolled back."""
    shared = stream("incidents", 100)
    assert sum(harm_found(seed, shared, 1 + MARGIN) is not None for seed in range(500)) <= 5


def test_a_canary_at_exactly_the_tolerance_is_left_alone() -> None:
    """500 rollouts of 20,000 requests, scores shifted by exactly 0.05 sd, with swings: at most 1%."""
    shared = stream("swings", 20)
    assert sum(shift_found(seed, shared, TOLERANCE_SD) is not None for seed in range(500)) <= 5


def test_weights_may_change_at_every_step() -> None:
    """A ramp from 1% to 50% during an incident: a healthy canary stays, one twice as bad goes."""
    threshold = needed(OMEGA["failed"])
    found = {1.0: 0, 2.0: 0}
    for seed in SEEDS:
        for ratio in found:
            rng, evidence, gone = np.random.default_rng(seed), HarmEvidence(), False
            for step, weight in enumerate([0.01] * 10 + [0.1] * 20 + [0.25] * 20 + [0.5] * 20):
                rate = BASE_RATE * (6 if 25 < step < 45 else 1)
                canary = int(rng.binomial(TICK_REQUESTS, weight))
                bad = int(rng.binomial(canary, rate * ratio))
                control_bad = int(rng.binomial(TICK_REQUESTS - canary, rate))
                counts = (canary, bad, TICK_REQUESTS - canary, control_bad)
                evidence.fold(ArmCounts(round(weight * 1e4), *(n * MICRO for n in counts)), MARGIN)
                gone = gone or (evidence.enough and evidence.evidence >= threshold)
            found[ratio] += gone
    assert found[1.0] == 0
    assert found[2.0] == len(SEEDS)
