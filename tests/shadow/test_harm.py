"""Harm: what the evidence may depend on, what it is worth, and when it is broad enough."""

from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.harm import (
    FLOOR,
    MICRO,
    OMEGA,
    ArmCounts,
    HarmEvidence,
    coin_bets,
    enough,
    hard_failure,
    mean_wealth,
    needed,
)

MARGIN = 0.1


def requests(
    weight_bp: int, canary: float, canary_bad: float, control: float, control_bad: float
) -> ArmCounts:
    """Counts given in whole requests."""
    return ArmCounts(weight_bp, *(round(n * MICRO) for n in (canary, canary_bad, control, control_bad)))


def folded(*ticks: ArmCounts, margin: float = MARGIN) -> HarmEvidence:
    """Evidence after these ticks."""
    evidence = HarmEvidence()
    for tick in ticks:
        evidence.fold(tick, margin)
    return evidence


@st.composite
def ticks(draw: st.DrawFn) -> list[ArmCounts]:
    """A short rollout over a few weights, in fractions of requests."""
    found = []
    for _ in range(draw(st.integers(1, 8))):
        canary, control = draw(st.integers(0, 10**8)), draw(st.integers(0, 10**9))
        found.append(
            ArmCounts(
                draw(st.sampled_from([1, 100, 1000, 5000, 9999])),
                canary,
                draw(st.integers(0, min(canary, 30 * MICRO))),
                control,
                draw(st.integers(0, min(control, 30 * MICRO))),
            )
        )
    return found


def parts_of(counts: ArmCounts, cut: float) -> tuple[ArmCounts, ArmCounts]:
    """The same traffic in two ticks."""
    whole = [counts.canary_bad, counts.canary_requests - counts.canary_bad]
    whole += [counts.control_bad, counts.control_requests - counts.control_bad]
    first = [int(n * cut) for n in whole]
    second = [n - f for n, f in zip(whole, first, strict=True)]
    one, two = (
        ArmCounts(counts.weight_bp, bad + good, bad, control_bad + control_good, control_bad)
        for bad, good, control_bad, control_good in (first, second)
    )
    return one, two


@settings(deadline=None)
@given(ticks(), st.floats(0, 1), st.randoms(use_true_random=False))
def test_evidence_depends_on_neither_order_nor_cuts(rollout, cut, random) -> None:
    """The same traffic in other ticks and another order gives the same evidence, to the last bit."""
    pieces = [part for tick in rollout for part in parts_of(tick, cut)]
    random.shuffle(pieces)
    one, other = folded(*rollout), folded(*pieces)
    assert (one.relative, one.absolute, one.evidence) == (other.relative, other.absolute, other.evidence)


@settings(deadline=None)
@given(ticks(), st.integers(0, 8))
def test_state_survives_a_restart(rollout, at) -> None:
    """Written down and read back in the middle, the evidence goes on as if nothing had happened."""
    straight, broken = folded(*rollout), folded(*rollout[:at])
    for codec in (msgspec.json, msgspec.msgpack):
        broken = codec.decode(codec.encode(broken), type=HarmEvidence)
    for tick in rollout[at:]:
        broken.fold(tick, MARGIN)
    assert straight == broken
    assert straight.evidence == broken.evidence


@pytest.mark.parametrize("weight_bp", [100, 1000, 5000, 9000])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.1])
def test_the_relative_e_value_is_worth_at_most_one_under_its_null(weight_bp, ratio) -> None:
    """Over all outcomes of 12 bad requests, the mean evidence against a canary within the margin is <= 1."""
    weight = weight_bp / 10_000
    hit = weight * ratio / (weight * ratio + 1 - weight)
    total = 0.0
    for bad in range(13):
        evidence = folded(requests(weight_bp, 100, bad, 900, 12 - bad)).relative
        total += math.comb(12, bad) * hit**bad * (1 - hit) ** (12 - bad) * evidence
    assert total <= 1 + 1e-9
    assert ratio < 1.1 or total == pytest.approx(1)


@pytest.mark.parametrize("rate", [FLOOR / 10, FLOOR])
def test_the_absolute_e_value_is_worth_at_most_one_under_its_null(rate) -> None:
    """Over all outcomes of 50 requests, the mean evidence against a rate at the floor is <= 1."""
    total = 0.0
    for bad in range(51):
        evidence = folded(requests(1000, 50, bad, 0, 0)).absolute
        total += math.comb(50, bad) * rate**bad * (1 - rate) ** (50 - bad) * evidence
    assert total <= 1 + 1e-9
    assert rate < FLOOR or total == pytest.approx(1)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from([100, 1000, 5000]))
def test_rows_of_a_request_bet_no_more_than_one_request_may(rows, weight_bp) -> None:
    """m rows of weight 1/m: never more evidence than the worst of them alone, as a request of its own."""
    share, bad = MICRO // len(rows), sum(rows)
    split = folded(ArmCounts(weight_bp, share * len(rows), share * bad, 0, 0))
    alone = [folded(requests(weight_bp, 1, is_bad, 0, 0)) for is_bad in set(rows)]
    assert split.relative <= max(one.relative for one in alone) * (1 + 1e-9)
    assert split.absolute <= max(one.absolute for one in alone) * (1 + 1e-3)


def test_a_wholly_bad_request_counts_once_however_many_rows() -> None:
    """128 bad rows are one bad request, to within the rounding of weights."""
    share = MICRO // 128
    many = folded(ArmCounts(1000, share * 128, share * 128, 0, 0))
    assert many.relative == pytest.approx(folded(requests(1000, 1, 1, 0, 0)).relative, rel=1e-3)


def test_four_errors_convict_at_one_percent_when_the_control_has_none() -> None:
    """At 1% weight the boldest bet wins a factor of about 9 by each bad request of the canary."""
    assert math.exp(coin_bets(100, MARGIN)[-1].canary) == pytest.approx(9.1, abs=0.1)
    assert folded(requests(100, 100, 4, 9_900, 0)).evidence > 1 / (0.01 * OMEGA["failed"])


def test_harm_too_rare_to_matter_is_no_harm() -> None:
    """Many times worse than the control and still under one in 10,000: the absolute bound stands."""
    evidence = folded(requests(1000, 1_000_000, 60, 9_000_000, 0))
    assert evidence.relative > 1e12
    assert evidence.evidence < 1


def test_what_both_versions_share_is_no_harm() -> None:
    """An incident that hits both alike proves the rate and says nothing against the canary."""
    evidence = folded(requests(1000, 1_000, 200, 9_000, 1_800))
    assert evidence.absolute > 1e12
    assert evidence.evidence < 1


def test_the_ratio_stays_fair_when_the_weight_rises_in_an_incident() -> None:
    """Compared at equal weight, two equal versions have the ratio 1; their raw rates differ."""
    evidence = folded(requests(1000, 100, 1, 900, 9), requests(5000, 500, 50, 500, 50))
    assert evidence.ratio == pytest.approx(1)
    raw = evidence.canary_bad / evidence.canary_requests, evidence.control_bad / evidence.control_requests
    assert raw == (pytest.approx(51 / 600), pytest.approx(59 / 1400))


def test_without_traffic_there_is_no_ratio() -> None:
    """Before the first request nothing is known, and the evidence is 1."""
    evidence = HarmEvidence()
    assert evidence.ratio is None
    assert (evidence.relative, evidence.absolute, evidence.evidence) == (1.0, 1.0, 1.0)


def test_evidence_is_capped_not_infinite() -> None:
    """However long a bad canary runs, the evidence stays a number that JSON can hold."""
    evidence = folded(requests(1000, 10**7, 10**7, 10**7, 0)).evidence
    assert evidence == math.exp(700)
    assert mean_wealth([-1e9, -1e9]) == 0.0


def test_shares_of_alpha_add_up_to_one() -> None:
    """The kinds of evidence together use the whole of alpha and no more."""
    assert sum(OMEGA.values()) == pytest.approx(1)
    assert needed(OMEGA["nonfinite"]) == pytest.approx(666.67, abs=0.01)


@pytest.mark.parametrize(
    "counts",
    [
        ArmCounts(0, 1, 0, 1, 0),
        ArmCounts(10_000, 1, 0, 1, 0),
        ArmCounts(1000, 1, 2, 1, 0),
        ArmCounts(1000, 1, 0, 1, 2),
        ArmCounts(1000, 1, -1, 1, 0),
    ],
)
def test_counts_that_cannot_be_are_refused(counts) -> None:
    """A weight at which nothing compares, or more bad than there were: refused, and nothing is folded."""
    evidence = HarmEvidence()
    with pytest.raises(ValueError, match=r"weight_bp|canary|control"):
        evidence.fold(counts, MARGIN)
    assert evidence == HarmEvidence()
    with pytest.raises(ValueError, match="margin"):
        evidence.fold(ArmCounts(1000, 1, 0, 1, 0), -0.1)


def test_enough_needs_five_bad_requests_in_two_ticks() -> None:
    """One burst is never enough, however large; nor are four bad requests, however spread."""
    burst = requests(1000, 100, 100, 900, 0)
    assert not folded(burst).enough
    assert folded(burst, burst).enough
    quiet = requests(1000, 100, 0, 900, 3)
    assert not folded(burst, quiet, quiet).enough
    assert not enough(4 * MICRO, 4)
    assert enough(5 * (MICRO // 7 * 7), 2)


def test_a_tick_under_two_weights_is_one_tick() -> None:
    """A burst across a route change is still a burst."""
    evidence = HarmEvidence()
    evidence.fold_tick([requests(1000, 50, 9, 450, 0), requests(2000, 50, 9, 200, 0)], MARGIN)
    assert evidence.ticks_with_evidence == 1
    assert not evidence.enough


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        ([(1000, 100, 100, 900, 0)], True),
        ([(1000, 50, 3, 450, 0), (1000, 50, 2, 450, 0)], True),
        ([(100, 10, 4, 990, 0)], True),
        ([(5000, 500, 3, 500, 0)], False),
        ([(5000, 500, 300, 500, 0)], True),
        ([(1000, 100, 100, 900, 900)], False),
        ([(1000, 100, 100, 900, 45)], False),
        ([(1000, 100, 100, 0, 0)], False),
        ([(1000, 100, 2, 900, 0)], False),
        ([], False),
    ],
)
def test_a_hard_failure_is_many_units_far_above_the_control(recent, expected) -> None:
    """At least 3 units, more than 20 times the control's rate, and not by the luck of the draw."""
    assert hard_failure([requests(*tick) for tick in recent]) is expected


def test_a_hard_failure_has_to_be_plainer_the_more_often_one_looked() -> None:
    """What is plain at the first look is chance at the ten thousandth: all looks share a tenth of alpha."""
    tick = [requests(1000, 50, 5, 450, 0)]
    assert hard_failure(tick, looks=1)
    assert hard_failure(tick, looks=3, alpha=0.5)
    assert not hard_failure(tick, looks=10_000)
    assert hard_failure([requests(1000, 100, 100, 900, 0)], looks=10_000)


@pytest.mark.parametrize("seed", range(2))
def test_a_healthy_canary_is_hardly_ever_a_hard_failure(seed) -> None:
    """10,000 windows of 10 s at 100 requests a second, three base rates, three weights: none."""
    rng = np.random.default_rng(seed)
    for weight_bp, base in itertools.product((100, 1000, 5000), (0.0001, 0.001, 0.005)):
        canary = rng.binomial(1_000, weight_bp / 10_000, 10_000)
        bad, control_bad = rng.binomial(canary, base), rng.binomial(1_000 - canary, base)
        for at in np.flatnonzero(bad >= 3):
            tick = requests(
                weight_bp,
                float(canary[at]),
                float(bad[at]),
                float(1_000 - canary[at]),
                float(control_bad[at]),
            )
            assert not hard_failure([tick])
