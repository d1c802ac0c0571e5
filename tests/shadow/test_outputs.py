"""What a logged answer says, for every kind of output."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gateway.audit.event import Tensor
from loaders.bundle import BundleSettings
from shadow.outputs import NO_CLASS, Judged, OutputReader


def fp32(name: str, values: Any) -> Tensor:
    """A float output."""
    array = np.asarray(values, np.float32)
    return Tensor(name, "FP32", array.shape, array.tobytes())


def int64(name: str, values: Any) -> Tensor:
    """An integer output."""
    array = np.asarray(values, np.int64)
    return Tensor(name, "INT64", array.shape, array.tobytes())


def judge(named: dict[str, Any], outputs: list[Tensor], rows: int) -> Judged:
    """Read `outputs` by the [outputs.*] tables of a bundle.toml."""
    return OutputReader(msgspec.convert({"outputs": named}, BundleSettings)).judge(outputs, rows)


def classes_of(judged: Judged) -> list[int]:
    """The classes, which must be there."""
    assert judged.classes is not None
    assert judged.classes.dtype == np.int64
    return judged.classes.tolist()


DECISION = {"p": {"kind": "probability", "decision": {"column": 1, "threshold": 0.25}}}


def test_a_decision_gives_its_columns_score_and_its_class():
    """At the threshold the answer is yes; the label beside it follows another threshold and is not asked."""
    named = {**DECISION, "label": {"kind": "label"}}
    judged = judge(named, [int64("label", [0, 0]), fp32("p", [[0.75, 0.25], [0.875, 0.125]])], 2)
    assert judged.scores.tolist() == [0.25, 0.125]
    assert classes_of(judged) == [1, 0]
    assert judged.finite.tolist() == [True, True]


def test_a_decision_on_column_zero():
    """The column that decides may be the first."""
    judged = judge(
        {"p": {"kind": "score", "decision": {"column": 0, "threshold": 0.5}}}, [fp32("p", [[0.4, 0.6]])], 1
    )
    assert (judged.scores.tolist(), classes_of(judged)) == ([pytest.approx(0.4)], [1])


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_lone_column_decides_yes_or_no(shape: tuple[int, ...]):
    """A sigmoid's output has one column: 1 above the threshold, else 0."""
    tensor = fp32("p", np.reshape([0.3, 0.2], shape))
    judged = judge({"p": {"kind": "probability", "decision": {"column": 0, "threshold": 0.25}}}, [tensor], 2)
    assert classes_of(judged) == [1, 0]
    assert classes_of(judge({"p": {"kind": "probability"}}, [tensor], 2)) == [0, 0]


def test_a_decision_over_three_classes_falls_to_the_best_of_the_others():
    """Below the threshold the class is the largest of the other columns."""
    judged = judge(DECISION, [fp32("p", [[0.2, 0.1, 0.7], [0.4, 0.3, 0.3]])], 2)
    assert classes_of(judged) == [2, 1]


def test_many_classes_without_a_decision():
    """The top class and its score."""
    judged = judge({"p": {"kind": "probability"}}, [fp32("p", [[0.125, 0.25, 0.625], [0.5, 0.25, 0.25]])], 2)
    assert judged.scores.tolist() == [0.625, 0.5]
    assert classes_of(judged) == [2, 0]


def test_a_label_beside_a_probability_is_the_class():
    """What the client reads as the answer counts, not the column's number."""
    named = {"p": {"kind": "probability"}, "label": {"kind": "label"}}
    judged = judge(named, [int64("label", [7]), fp32("p", [[0.75, 0.25]])], 1)
    assert (judged.scores.tolist(), classes_of(judged)) == ([0.75], [7])


def test_a_label_alone_has_no_score():
    """Nothing is made up: the score is NaN, and the row is finite."""
    judged = judge({"label": {"kind": "label"}}, [int64("label", [3, 4])], 2)
    assert np.isnan(judged.scores).all()
    assert classes_of(judged) == [3, 4]
    assert judged.finite.all()


def test_a_value_is_a_score_without_a_class():
    """A regression; of several values the first counts."""
    judged = judge({"v": {"kind": "value"}}, [fp32("v", [[2.5, 9.0], [-1.0, 9.0]]), int64("n", [1, 1])], 2)
    assert judged.scores.tolist() == [2.5, -1.0]
    assert judged.classes is None


def test_without_settings_the_outputs_speak_for_themselves():
    """The first float output's last column is the score, the first integer output the class."""
    judged = judge({}, [int64("label", [1, 0]), fp32("p", [[0.25, 0.75], [0.5, 0.5]]), fp32("q", [9, 9])], 2)
    assert judged.scores.tolist() == [0.75, 0.5]
    assert classes_of(judged) == [1, 0]
    assert judge({}, [fp32("v", [1.5])], 1).classes is None


def test_texts_are_no_classes():
    """BYTES labels are passed over."""
    texts = Tensor("label", "BYTES", (1,), b"\x02\0\0\0no")
    judged = judge({"label": {"kind": "label"}, "p": {"kind": "score"}}, [texts, fp32("p", [0.5])], 1)
    assert judged.classes is None
    assert judged.scores.tolist() == [0.5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_decides_nothing(bad: float):
    """Its score is NaN, its class NO_CLASS; its neighbours stand."""
    for named in (DECISION, {"p": {"kind": "probability"}}):
        judged = judge(named, [fp32("p", [[0.25, 0.75], [bad, bad]])], 2)
        assert judged.finite.tolist() == [True, False]
        assert judged.scores[0] == 0.75
        assert math.isnan(judged.scores[1])
        assert classes_of(judged) == [1, NO_CLASS]


def test_every_float_output_counts_for_finite():
    """Also one that gives no score."""
    judged = judge(DECISION, [fp32("p", [[0.25, 0.75]]), fp32("extra", [[math.nan]])], 1)
    assert judged.finite.tolist() == [False]
    assert judged.scores.tolist() == [0.75]


@pytest.mark.parametrize(
    ("outputs", "rows", "says"),
    [
        ([Tensor("p", "FP32", (1, 2), None, "ab")], 1, "'p' is in the record by hash only"),
        ([fp32("q", [1.0])], 1, "'p' of bundle.toml is not in the record; it has q"),
        ([fp32("p", [[0.5, 0.5]])], 3, "'p' has 2 elements, which are not 3 rows"),
        ([fp32("p", [[0.5]])], 1, "column 1 is not there"),
    ],
)
def test_what_is_missing_is_named(outputs: list[Tensor], rows: int, says: str):
    """A record that cannot be judged says which output and why."""
    if says.startswith("column"):
        named = {"p": {"kind": "probability", "decision": {"column": 1}}}
    else:
        named = DECISION
    with pytest.raises(ValueError, match=says):
        judge(named, outputs, rows)


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(2, 4)), elements=st.floats(width=32))
)
def test_a_row_reads_the_same_in_any_company(table: np.ndarray):
    """f(rows)[i] = f(row i): joining requests changes nothing."""
    for named in (DECISION, {"p": {"kind": "probability"}}, {"p": {"kind": "value"}}, {}):
        whole = judge(named, [fp32("p", table)], len(table))
        for i, row in enumerate(table):
            alone = judge(named, [fp32("p", [row])], 1)
            np.testing.assert_array_equal(whole.scores[i], alone.scores[0])
            assert whole.finite[i] == alone.finite[0]
            if whole.classes is not None and alone.classes is not None:
                assert whole.classes[i] == alone.classes[0]
