"""Redaction rules are held against the model: a misspelt one must not record what it was to keep out."""

from __future__ import annotations

from typing import Any

import pytest

from loaders.bundle import BundleSettings, InputSettings, Redaction
from loaders.errors import BundleInvalid
from loaders.redact import cells
from loaders.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (
        TensorSpec("X", "FP32", (-1, 3)),
        TensorSpec("who", "BYTES", (-1,)),
        TensorSpec("free", "FP32", (-1, -1)),
    ),
    (TensorSpec("Y", "FP32", (-1, 1)),),
)
NAMED = {"X": InputSettings(features=("age", "zip", "income"))}


def rule(input_: str, feature: str, how: Any = "drop", edges: tuple[float, ...] = ()) -> Redaction:
    """A rule."""
    return Redaction(input=input_, feature=feature, how=how, edges=edges)


def test_rules_find_their_columns() -> None:
    """By the names of bundle.toml, by number where there are none, by the input's own name where it has one column."""
    found = cells(
        BundleSettings(redact=(rule("X", "zip"), rule("who", "who")), inputs=NAMED), SIGNATURE, "m/1"
    )
    assert [(cell.input_index, cell.column, cell.width) for cell in found] == [(0, 1, 3), (1, 0, 1)]
    (by_number,) = cells(BundleSettings(redact=(rule("X", "2"),)), SIGNATURE, "m/1")
    assert by_number.column == 2


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([rule("Z", "zip")], "no such input; the model has 'X', 'who', 'free'"),
        ([rule("X", "zipp")], "no such feature; expected one of age, zip, income"),
        ([rule("free", "0")], "expected a last dimension that does not vary"),
        ([rule("X", "zip"), rule("X", "zip", "hash")], "named twice"),
        ([rule("X", "age", "bucket")], "edges are []; expected some"),
        ([rule("X", "age", "bucket", (2.0, 1.0))], "each above the one before"),
        ([rule("X", "age", "bucket", (1.0, float("nan")))], "each above the one before"),
        ([rule("X", "age", "hash", (1.0,))], "edges are for how = 'bucket'"),
        ([rule("who", "who", "bucket", (1.0,))], "BYTES has no order"),
    ],
)
def test_a_rule_that_cannot_be_kept_refuses_the_version(rules: list[Redaction], said: str) -> None:
    """Named with input and feature, what was found and what was expected."""
    with pytest.raises(BundleInvalid, match="redact") as refused:
        cells(BundleSettings(redact=tuple(rules), inputs=NAMED), SIGNATURE, "m/1")
    assert said in str(refused.value)
    assert "m/1/bundle.toml" in str(refused.value)


def test_a_name_of_several_features_is_refused() -> None:
    """The rule would keep one of them out and record the other."""
    inputs = {"X": InputSettings(features=("zip", "age", "zip"))}
    with pytest.raises(BundleInvalid, match="2 features have this name"):
        cells(BundleSettings(redact=(rule("X", "zip"),), inputs=inputs), SIGNATURE, "m/1")


def test_features_must_be_as_many_as_columns() -> None:
    """Names for other columns than there are would hide the wrong one."""
    inputs = {"X": InputSettings(features=("age", "zip"))}
    with pytest.raises(BundleInvalid, match="names 2 features of an input that has 3"):
        cells(BundleSettings(redact=(rule("X", "zip"),), inputs=inputs), SIGNATURE, "m/1")
