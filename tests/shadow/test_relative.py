"""Relative drift: bins, the bet on a score, and what people are shown."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.detectors.bins import CLIP_SD, CONTROL_ROWS, QUANTILES
from shadow.detectors.relative import CENTRE_SD, ScoreBins, ShiftCounts, ShiftEvidence, bet_sizes, gains
from shadow.harm import MICRO, OMEGA, needed

TOLERANCE_SD = 0.05
WEIGHTS_BP = [1, 100, 1000, 5000, 9000, 9999]
NORMAL = ScoreBins.from_reference(np.random.default_rng(0).normal(size=20_000))
finite = st.floats(-1e30, 1e30, allow_nan=False)
references = st.one_of(
    st.lists(finite, min_size=1, max_size=80),
    st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=80),
    st.lists(st.floats(0, 1, width=32), min_size=30, max_size=200),
)


def shift_counts(weight_bp: int, canary: np.ndarray, control: np.ndarray) -> ShiftCounts:
    """Counts of single-row requests with these scores."""
    return ShiftCounts(weight_bp, NORMAL.tally(canary, MICRO).tolist(), NORMAL.tally(control, MICRO).tolist())


def traffic(rng: np.random.Generator, weight_bp: int, shift: float, rows: int = 1_000) -> ShiftCounts:
    """A tick of normal scores; the canary's are `shift` higher."""
    drawn = rng.random(rows) < weight_bp / 10_000
    scores = rng.normal(size=rows)
    return shift_counts(weight_bp, scores[drawn] + shift, scores[~drawn])


@settings(deadline=None)
@given(references)
def test_every_reference_has_usable_bins(values) -> None:
    """Constant, two-valued or wild: edges and scores rise, and nearly every reference value has an inner bin."""
    bins = ScoreBins.from_reference(np.array(values))
    assert all(np.diff(bins.edges) > 0)
    assert all(np.diff(bins.scores[:-1]) >= 0)
    assert len(bins.scores) == len(bins.edges) + 2 <= 2 * QUANTILES + 3
    assert all(math.isfinite(score) and abs(score) <= CLIP_SD for score in bins.scores)
    assert bins.scores[0] < 0 < bins.scores[-2]
    assert bins.scores[-1] == 0
    found = bins.bin(np.array(values))
    assert ((found >= 1) & (found <= len(bins.scores) - 3)).mean() > 0.95


@settings(deadline=None)
@given(references, st.randoms(use_true_random=False))
def test_bins_do_not_depend_on_the_order_of_the_reference(values, random) -> None:
    """The same values in another order make the same bins, and they survive being written down."""
    shuffled = random.sample(values, len(values))
    bins = ScoreBins.from_reference(np.array(sorted(values)))
    again = ScoreBins.from_reference(np.array(shuffled))
    assert bins == again
    assert msgspec.json.decode(msgspec.json.encode(bins), type=ScoreBins) == bins


@settings(deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=50))
def test_every_score_has_one_bin(scores) -> None:
    """Whatever a model answers falls into a bin, and tallies add up."""
    found = NORMAL.bin(np.array(scores))
    assert ((found >= 0) & (found < len(NORMAL.scores))).all()
    assert (found == len(NORMAL.scores) - 1).tolist() == np.isnan(scores).tolist()
    assert NORMAL.tally(np.array(scores), 7).sum() == 7 * len(scores)
    weights = np.arange(len(scores)) + 333_333
    tallied = NORMAL.tally(np.array(scores), weights)
    assert tallied.tolist() == [int(weights[found == index].sum()) for index in range(len(NORMAL.scores))]


def test_bins_of_a_normal_reference_are_its_units() -> None:
    """About 20 bins, and a shift of half an sd moves the mean score by half an sd."""
    rows = np.random.default_rng(1).normal(size=200_000)
    scores = np.array(NORMAL.scores)
    assert len(scores) == QUANTILES + 3
    assert scores[NORMAL.bin(rows)].mean() == pytest.approx(0, abs=0.02)
    assert scores[NORMAL.bin(rows + 0.5)].mean() == pytest.approx(0.5, abs=0.03)


def test_rounding_moves_no_value_into_another_bin() -> None:
    """Outputs that differ in the last bit from a two-valued or constant reference are the same outputs."""
    for values in ([0.0, 1.0, 1.0], [0.7] * 5, list(np.linspace(0, 1, 15))):
        bins = ScoreBins.from_reference(np.array(values, dtype=np.float32))
        for near in (np.array(values) * (1 + 3e-7) + 1e-9, np.array(values) * (1 - 3e-7) - 1e-9):
            assert bins.bin(near).tolist() == bins.bin(np.array(values, dtype=np.float32)).tolist()


def test_a_mass_of_equal_outputs_has_a_bin_of_its_own() -> None:
    """Half of all outputs are 0: that half is not mixed with what lies next to it."""
    values = np.concatenate([np.zeros(500), np.random.default_rng(2).exponential(size=500)])
    bins = ScoreBins.from_reference(values)
    assert (bins.bin(values) == bins.bin(np.zeros(1))).sum() == 500


def test_few_outliers_do_not_set_the_unit() -> None:
    """Three wild values among 3,000 leave the sd where it was."""
    rows = np.random.default_rng(3).normal(size=3_000)
    wild = np.concatenate([rows, [1e6, -1e7, 1e8, np.nan, np.inf]])
    assert ScoreBins.from_reference(wild).sd == pytest.approx(ScoreBins.from_reference(rows).sd, rel=0.05)
    rounded = np.concatenate([np.full(3_000, 0.7) + rows * 1e-9, [-40.0]])
    assert ScoreBins.from_reference(rounded).sd == pytest.approx(0.7e-3)


def test_no_finite_value_makes_no_bins() -> None:
    """Bins cannot be made of nothing, and the message says what was found."""
    with pytest.raises(ValueError, match="no finite score among 2"):
        ScoreBins.from_reference(np.array([np.nan, np.inf]))
    assert ScoreBins.from_control(np.arange(CONTROL_ROWS)).source == "control"


@settings(deadline=None)
@given(references, st.sampled_from(WEIGHTS_BP), st.floats(-CENTRE_SD, CENTRE_SD), st.floats(0, 3))
def test_no_row_ruins_a_bet(values, weight_bp, centre, tolerance) -> None:
    """1 + lambda D stays at a twentieth or more in every bin, for every weight and centre."""
    scores = np.array(ScoreBins.from_reference(np.array(values)).scores)
    gain = gains(scores, weight_bp, centre, tolerance)
    assert np.exp(gain).min() >= 0.05 - 1e-9
    assert (bet_sizes(scores, weight_bp, tolerance, 1.0) > 0).all()


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=46, max_size=46),
    st.sampled_from(WEIGHTS_BP),
    st.floats(-CENTRE_SD, CENTRE_SD),
)
def test_a_row_is_worth_one_plus_lambda_times_the_shift_beyond_the_tolerance(
    masses, weight_bp, centre
) -> None:
    """Exactly, by enumeration over versions and bins: so at most 1 while the shift is tolerated."""
    scores, weight = np.array(NORMAL.scores), weight_bp / 10_000
    canary, control = np.array(masses[:23]), np.array(masses[23:])
    canary, control = canary / canary.sum(), control / control.sum()
    shift = float((scores * (canary - control)).sum())
    worth = np.exp(gains(scores, weight_bp, centre, TOLERANCE_SD))
    mean = weight * (worth[:, 0] * canary).sum(axis=1) + (1 - weight) * (worth[:, 1] * control).sum(axis=1)
    sizes = [bet_sizes(scores, weight_bp, TOLERANCE_SD, direction) for direction in (1.0, -1.0)]
    expected = np.concatenate([1 + sizes[0] * (shift - TOLERANCE_SD), 1 + sizes[1] * (-shift - TOLERANCE_SD)])
    assert mean == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(0, 22), min_size=1, max_size=40), st.sampled_from(WEIGHTS_BP), st.booleans())
def test_rows_of_a_request_win_no_more_than_one_row_may(rows, weight_bp, is_canary) -> None:
    """m rows of weight 1/m: never more evidence than the strongest of them as a request of its own."""

    def evidence(counts: np.ndarray) -> float:
        none = [0] * len(counts)
        found = ShiftEvidence(NORMAL.scores)
        pair = (counts.tolist(), none) if is_canary else (none, counts.tolist())
        found.fold(ShiftCounts(weight_bp, *pair), TOLERANCE_SD)
        return found.evidence

    share = MICRO // len(rows)
    together = evidence(np.bincount(rows, minlength=23) * share)
    alone = [evidence(np.bincount([row], minlength=23) * share * len(rows)) for row in set(rows)]
    assert together <= max(alone) * (1 + 1e-9)


def test_the_centre_knows_earlier_ticks_only() -> None:
    """A tick is folded around the control's mean before it; the first around 0."""
    tick = traffic(np.random.default_rng(4), 1000, 0.0)
    moved = ShiftCounts(1000, tick.canary, np.roll(tick.control, 3).tolist())
    evidence = ShiftEvidence(NORMAL.scores)
    assert evidence.centre == 0.0
    for counts in (tick, moved):
        before, centre = np.array(evidence.log_wealth), evidence.centre
        gain = gains(np.array(NORMAL.scores), 1000, centre, TOLERANCE_SD)
        won = gain[:, 0] @ np.array(counts.canary) + gain[:, 1] @ np.array(counts.control)
        evidence.fold(counts, TOLERANCE_SD)
        assert np.array(evidence.log_wealth) - before == pytest.approx(won / MICRO)
    assert evidence.centre != 0.0
    assert abs(evidence.centre) <= CENTRE_SD


def test_parts_of_a_tick_share_its_centre() -> None:
    """Two weights in one tick: neither part is centred on the other, and their order is the same to all."""
    rng = np.random.default_rng(5)
    first, *parts = traffic(rng, 1000, 0.0), traffic(rng, 1000, 0.4), traffic(rng, 3000, 0.4)
    one, other = ShiftEvidence(NORMAL.scores), ShiftEvidence(NORMAL.scores)
    for evidence, order in ((one, parts), (other, parts[::-1])):
        evidence.fold(first, TOLERANCE_SD)
        evidence.fold_tick(order, TOLERANCE_SD)
    assert one.log_wealth == pytest.approx(other.log_wealth)
    assert (one.ticks_with_evidence, one.enough, one.control) == (2, True, other.control)


def test_state_survives_a_restart_in_the_middle() -> None:
    """Written down and read back, the evidence goes on as if nothing had happened."""
    ticks = [traffic(np.random.default_rng(seed), 1000, 0.1) for seed in range(6)]
    straight, broken = ShiftEvidence(NORMAL.scores), ShiftEvidence(NORMAL.scores)
    for at, tick in enumerate(ticks):
        straight.fold(tick, TOLERANCE_SD)
        broken.fold(tick, TOLERANCE_SD)
        if at == 3:
            for codec in (msgspec.json, msgspec.msgpack):
                broken = codec.decode(codec.encode(broken), type=ShiftEvidence)
    assert straight == broken


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.3])
def test_people_see_the_shift_and_its_error(shift) -> None:
    """The estimate is within three standard errors of the truth, and the direction is right."""
    rng = np.random.default_rng(6)
    evidence = ShiftEvidence(NORMAL.scores)
    for _ in range(40):
        evidence.fold(traffic(rng, 1000, shift), TOLERANCE_SD)
    assert evidence.standard_error_sd == pytest.approx(1 / math.sqrt(40_000 * 0.09), rel=0.05)
    assert abs(evidence.estimate_sd - shift) < 3 * evidence.standard_error_sd + 0.02
    assert (sum(evidence.canary) + sum(evidence.control)) / MICRO == pytest.approx(40_000)
    assert (evidence.evidence >= needed(OMEGA["shift"])) is (shift != 0.0)
    assert shift == 0.0 or (evidence.estimate_sd > 0) is (shift > 0)


def test_the_estimate_stays_fair_when_the_weight_rises_in_a_swing() -> None:
    """Traffic shifts for both while the canary's share is raised: the estimate stays near 0."""
    rng = np.random.default_rng(7)
    evidence = ShiftEvidence(NORMAL.scores)
    for weight_bp, swing in [(500, 0.0)] * 20 + [(5000, 1.0)] * 20:
        drawn, scores = rng.random(1_000) < weight_bp / 10_000, rng.normal(size=1_000) + swing
        evidence.fold(shift_counts(weight_bp, scores[drawn], scores[~drawn]), TOLERANCE_SD)
    assert abs(evidence.estimate_sd) < 3 * evidence.standard_error_sd
    assert evidence.evidence < 1


def test_before_any_row_there_is_no_estimate() -> None:
    """No rows: evidence of 1, no estimate, no error."""
    evidence = ShiftEvidence(NORMAL.scores)
    assert (evidence.evidence, evidence.estimate_sd, evidence.standard_error_sd) == (1.0, None, None)


@pytest.mark.parametrize(
    ("counts", "tolerance", "match"),
    [
        (ShiftCounts(0, [0] * 23, [0] * 23), 0.05, "weight_bp"),
        (ShiftCounts(10_000, [0] * 23, [0] * 23), 0.05, "weight_bp"),
        (ShiftCounts(1000, [0] * 22, [0] * 23), 0.05, "23 bins"),
        (ShiftCounts(1000, [-1] * 23, [0] * 23), 0.05, "below 0"),
        (ShiftCounts(1000, [0] * 23, [0] * 23), -1.0, "tolerance"),
    ],
)
def test_shift_counts_that_cannot_be_are_refused(counts, tolerance, match) -> None:
    """What cannot be compared is refused, and nothing is folded."""
    evidence = ShiftEvidence(NORMAL.scores)
    with pytest.raises(ValueError, match=match):
        evidence.fold(counts, tolerance)
    assert evidence == ShiftEvidence(NORMAL.scores)
