"""Cost: what is learnt of runs, how large batches grow, and how near the prediction is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cost import CostModel


def learnt(ns_of, warm=None, max_rows: int = 256, runs: int = 600, seed: int = 1) -> CostModel:
    """A model fed with full batches, as under load, of a cost that the function gives."""
    rng = random.Random(seed)
    model = CostModel(warm or {1: int(ns_of(1)), 32: int(ns_of(32))}, max_rows)
    for _ in range(runs):
        rows = model.limit_rows if rng.random() < 0.7 else rng.randint(1, model.limit_rows)
        took = int(ns_of(rows) * rng.uniform(0.9, 1.1))
        model.learn(rows, took, took)
    return model


def test_an_unknown_size_lies_on_the_line_through_those_known() -> None:
    """Between sizes the line, beyond the last two the line through them, below the smallest its cost."""
    cost = CostModel({1: 1000, 32: 32_000}, 256)
    assert [cost.estimate_ns(rows) for rows in (1, 16, 32, 64)] == [1000, 16_000, 32_000, 64_000]


def test_one_size_alone_is_scaled_in_proportion() -> None:
    """With a single known size nothing better can be said."""
    assert CostModel({1: 1000}, 256).estimate_ns(64) == 64_000


@pytest.mark.parametrize(
    ("ns_of", "low", "high"),
    [
        (lambda rows: 6_400_000 * rows * (1 + 0.12 * (rows.bit_length() - 1)), 1, 3),
        (lambda rows: 1_000_000 + 10_000 * rows, 255, 256),
        (lambda rows: 20_000_000 * rows, 1, 12),
        (lambda rows: 2_000 * rows, 255, 256),
        (lambda rows: 5_000_000 + 500_000 * rows * (1 if rows < 64 else 3), 32, 63),
    ],
    ids=["dearer in company", "cheaper in company", "the same", "next to nothing", "dearer from 64 on"],
)
def test_batches_grow_while_a_row_gets_no_dearer(ns_of, low: int, high: int) -> None:
    """The batch size that is reached under load is the smallest whose cost per row is as good as any."""
    limit = learnt(ns_of, max_rows=256).limit_rows
    assert low <= limit <= high


def test_a_batch_size_that_was_dear_is_tried_again() -> None:
    """What made large batches dear is over: the batch size finds back."""
    model = learnt(lambda rows: 5_000_000 + 100_000 * rows * (1 if rows < 32 else 9))
    assert model.limit_rows in (31, 63)
    for _ in range(8000):
        rows = model.limit_rows
        model.learn(rows, 5_000_000 + 100_000 * rows, 5_000_000 + 100_000 * rows)
    assert model.limit_rows >= 128


@pytest.mark.parametrize("seed", range(5))
def test_predicted_is_near_actual(seed: int) -> None:
    """Over runs of a model whose speed drifts and jitters, predicted / actual is within 1.5 for nine in ten."""
    rng = random.Random(seed)
    model = CostModel({1: 900_000, 32: 5_000_000}, 256)
    speed = 1.0
    off = []
    for _ in range(3000):
        speed = min(max(speed * rng.lognormvariate(0, 0.01), 0.5), 2.0)
        rows = rng.choice((1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233))
        hiccup = 8 if rng.random() < 0.02 else 1
        actual = (1_000_000 + 150_000 * rows) * speed * rng.lognormvariate(0, 0.1) * hiccup
        predicted = model.estimate_ns(rows)
        off.append(max(predicted / actual, actual / predicted))
        model.learn(rows, int(actual), int(actual))
    assert sorted(off[100:])[int(0.9 * (len(off) - 100))] <= 1.5


def test_the_clock_is_told_apart_from_the_processor() -> None:
    """A neighbour that takes half the processor doubles what is promised, not what is fitted."""
    model = CostModel({1: 1_000_000}, 8)
    for _ in range(200):
        model.learn(1, 1_000_000, 2_000_000)
    assert abs(model.estimate_ns(1) - 1_000_000) < 1000
    assert abs(model.wall_ns(1) - 2_000_000) < 20_000


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 10**9)), max_size=60), st.integers(1, 300))
def test_estimates_are_always_positive_and_rows_within_keep_their_word(runs, rows: int) -> None:
    """Whatever was learnt: no estimate at or below nothing, and a batch cut for a time fits the estimate."""
    model = CostModel({1: 1000, 32: 9000}, 256)
    for size, took_ns in runs:
        model.learn(size, took_ns, took_ns)
    assert model.estimate_ns(rows) > 0
    assert 1 <= model.limit_rows <= 256
    within = model.rows_within(model.wall_ns(rows))
    assert within == 0 or within == model.limit_rows or model.wall_ns(within) <= model.wall_ns(rows)
