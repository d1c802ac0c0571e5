"""Golden rows: a version that does not answer as it says is not served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loaders.errors import GoldenMismatch
from loaders.session import Session, load
from tests.loaders import graphs


def line(x: list[float], y: list[float], **more: Any) -> dict[str, Any]:
    """One golden line of a model from X to Y."""
    shape = [len(x) // 4, 4]
    return {
        "id": "g",
        "inputs": [{"name": "X", "datatype": "FP32", "shape": shape, "data": x}],
        "outputs": [{"name": "Y", "datatype": "FP32", "shape": shape, "data": y}],
        **more,
    }


def served(root: Path, lines: list[Any], content: bytes | None = None) -> Session:
    """The session of a version with this golden file."""
    directory = graphs.put(root, content or graphs.double(), bundle="golden = 'golden.jsonl'")
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    (directory / "golden.jsonl").write_text(text + "\n")
    return load(root, "m", "1")


def test_lines_that_are_met(tmp_path: Path) -> None:
    """Counted; tolerances are the line's."""
    near = line([1, 2, 3, 4], [2.01, 4, 6, 8], atol=0.1)
    assert served(tmp_path, [line([1, 2, 3, 4], [2, 4, 6, 8]), "", near]).golden_lines == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            line([1, 2, 3, 4], [2, 4, 6, 8.5]),
            "g: output 'Y' differs by 0.5 at [0, 3]: 8, expected 8.5; 0.00086 is allowed",
        ),
        (line([1, 2, 3, 4], [2, 4, 6, None]), "g: output 'Y' differs by nan"),
        (line([1, 2, 3], [2, 4, 6, 8]), "line 1:"),
        ({**line([1, 2, 3, 4], [0] * 4), "inputs": []}, "line 1: input 'X' is missing"),
        ({**line([1, 2, 3, 4], [0] * 4), "outputs": []}, "line 1: it expects no output"),
        ("{", "line 1:"),
        (
            '{"inputs": [{"name": "Z", "datatype": "FP32", "shape": [], "data": []}], "outputs": []}',
            "'Z' is not one of",
        ),
    ],
    ids=["value", "nan", "shape", "no-input", "no-output", "json", "name"],
)
def test_version_that_fails_says_where(tmp_path: Path, wrong: Any, said: str) -> None:
    """Which line, which output, by how much, and what was allowed."""
    with pytest.raises(GoldenMismatch, match=r"^m/1/golden\.jsonl: ") as failed:
        served(tmp_path, [wrong])
    assert said in str(failed.value)


def test_company_is_checked_too() -> None:
    """Rows that answer alone as they say, and otherwise beside others, are found."""
    from loaders import golden
    from loaders.signature import Signature, TensorSpec

    signature = Signature((TensorSpec("X", "FP32", (-1, 4)),), (TensorSpec("Y", "FP32", (-1, 4)),))
    content = b"\n".join(json.dumps(line([float(i)] * 4, [float(i)] * 4)).encode() for i in (1, 2))
    lines = golden.parse(content, signature, "m/1/golden.jsonl")

    def run(feeds: dict[str, Any]) -> list[Any]:
        return [feeds["X"] + (0.5 if len(feeds["X"]) > 1 else 0)]

    golden.check(lines, signature, run, "m/1/golden.jsonl", batchable=False)
    with pytest.raises(GoldenMismatch, match=r"output 'Y', in a run with 1 others differs by 0\.5"):
        golden.check(lines, signature, run, "m/1/golden.jsonl", batchable=True)


def test_mixing_model_meets_its_rows_alone(tmp_path: Path) -> None:
    """Where rows may not share a run, none is checked in company."""
    session = served(tmp_path, [line([1, 2, 3, 4], [0] * 4)] * 2, graphs.mixing())
    assert (session.batchable, session.golden_lines) == (False, 2)
