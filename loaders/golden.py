"""Golden rows: what a version must answer, checked before it is ready.

bundle (names the file) -> **golden** -> session. One JSON object a line:
{"id", "inputs": [{"name", "datatype", "shape", "data"}], "outputs": [the same], "atol", "rtol"}. Each line is run alone
and, where rows may share a run, in company of all others: the answer must be the same both times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loaders.datatypes import NUMPY
from loaders.errors import GoldenMismatch
from loaders.signature import Signature, TensorSpec

GOLDEN_MAX_BYTES = 64 << 20
LINES_MAX = 10_000
AGAIN_MAX = 16
"""So many lines a serving worker runs again at most, all of which the trial has run."""
AGAIN_NS = 200_000_000
"""And no more than fit into so much time, by the cost of a warm run; one at least."""
ATOL, RTOL = 1e-5, 1e-4
"""Where a line names none."""
Run = Callable[[dict[str, Any]], Sequence[Any]]


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class _Line(msgspec.Struct):
    inputs: list[_Tensor]
    outputs: list[_Tensor]
    id: str = ""
    atol: float = ATOL
    rtol: float = RTOL


class Golden(NamedTuple):
    """One line."""

    id: str
    feeds: dict[str, Any]
    outputs: dict[str, Any]
    atol: float
    rtol: float


def parse(content: bytes, signature: Signature, where: str) -> list[Golden]:
    """Read the lines of a golden file.

    Args:
        where: what messages call the file.

    Raises:
        GoldenMismatch: a line cannot be read, or names tensors that the model does not have.
    """
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    lines: list[Golden] = []
    for number, text in enumerate(content.split(b"\n"), 1):
        if not text.strip():
            continue
        if len(lines) == LINES_MAX:
            msg = f"{where}: more than {LINES_MAX:,} lines"
            raise GoldenMismatch(msg)
        try:
            line = msgspec.json.decode(text, type=_Line)
            feeds = {t.name: _array(t, inputs) for t in line.inputs}
            expected = {t.name: _array(t, outputs) for t in line.outputs}
            if not expected:
                _refuse("it expects no output")
            missing = sorted(set(inputs) - set(feeds))
            if missing:
                _refuse(f"input {missing[0]!r} is missing")
        except (msgspec.DecodeError, ValueError, TypeError, OverflowError) as exc:
            msg = f"{where}: line {number}: {str(exc)[:200]}"
            raise GoldenMismatch(msg) from exc
        lines.append(Golden(line.id or f"line {number}", feeds, expected, line.atol, line.rtol))
    return lines


def some(lines: Sequence[Golden], cost_ns: int) -> list[Golden]:
    """Lines for a second look: a few, spread over the file, the first among them.

    Args:
        cost_ns: of a run.
    """
    count = max(1, min(len(lines), AGAIN_MAX, AGAIN_NS // max(2 * cost_ns, 1)))
    return [lines[i * len(lines) // count] for i in range(count)] if lines else []


def check(lines: Sequence[Golden], signature: Signature, run: Run, where: str, *, batchable: bool) -> None:
    """Run every line alone, and all of one form together.

    Raises:
        GoldenMismatch: names the line, the output, the largest difference and what is allowed.
    """
    for line in lines:
        try:
            given = run(line.feeds)
        except Exception as exc:
            text = (str(exc).splitlines() or [type(exc).__name__])[0][:200]
            msg = f"{where}: {line.id}: the model cannot run it: {text}"
            raise GoldenMismatch(msg) from exc
        _compare(line, signature, given, where, "")
    if not batchable:
        return
    forms: dict[Any, list[Golden]] = {}
    for line in lines:
        form = tuple(sorted((name, a.shape[1:], a.dtype.str) for name, a in line.feeds.items()))
        forms.setdefault(form, []).append(line)
    for group in forms.values():
        if len(group) > 1:
            _check_together(group, signature, run, where)


def _check_together(group: Sequence[Golden], signature: Signature, run: Run, where: str) -> None:
    feeds = {name: np.concatenate([line.feeds[name] for line in group]) for name in group[0].feeds}
    try:
        given = run(feeds)
    except Exception as exc:
        msg = f"{where}: {len(group)} lines in one run: the model cannot run them: {type(exc).__name__}"
        raise GoldenMismatch(msg) from exc
    row = 0
    for line in group:
        rows = len(next(iter(line.feeds.values())))
        part = [a[row : row + rows] for a in given]
        _compare(line, signature, part, where, f", in a run with {len(group) - 1} others")
        row += rows


def _compare(line: Golden, signature: Signature, given: Sequence[Any], where: str, company: str) -> None:
    by_name = {spec.name: a for spec, a in zip(signature.outputs, given, strict=True)}
    for name, expected in line.outputs.items():
        found = by_name[name]
        at = f"{where}: {line.id}: output {name!r}{company}"
        if found.shape != expected.shape:
            msg = f"{at} has shape {list(found.shape)}; expected {list(expected.shape)}"
            raise GoldenMismatch(msg)
        if expected.dtype.kind == "f":
            _compare_floats(line, expected, found, at)
        elif not np.array_equal(expected, found):
            place = tuple(int(i) for i in np.argwhere(np.asarray(expected != found))[0])
            msg = f"{at} is {_shown(found[place])} at {list(place)}; expected {_shown(expected[place])}"
            raise GoldenMismatch(msg)


def _compare_floats(line: Golden, expected: Any, found: Any, at: str) -> None:
    a, b = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = np.abs(a - b)
        allowed = line.atol + line.rtol * np.abs(a)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        wrong = ~same & ~(off <= allowed)
    if not wrong.any():
        return
    excess = np.where(wrong, np.nan_to_num(off, nan=np.inf, posinf=np.inf), -1.0)
    place = np.unravel_index(int(np.argmax(excess)), excess.shape) if excess.ndim else ()
    where = [int(i) for i in place]
    msg = (
        f"{at} differs by {off[place]:.3g} at {where}: {b[place]:.7g}, expected {a[place]:.7g};"
        f" {allowed[place]:.3g} is allowed (atol {line.atol:g}, rtol {line.rtol:g})"
    )
    raise GoldenMismatch(msg)


def _array(tensor: _Tensor, specs: dict[str, TensorSpec]) -> Any:
    spec = specs.get(tensor.name)
    if spec is None:
        _refuse(f"tensor {tensor.name[:60]!r} is not one of the model's: {', '.join(specs)}")
    assert spec is not None  # noqa: S101
    if tensor.datatype != spec.datatype:
        _refuse(f"tensor {tensor.name!r} is {tensor.datatype[:20]}; the model's is {spec.datatype}")
    shape = tuple(tensor.shape)
    if len(shape) != len(spec.shape) or any(s not in {-1, d} for d, s in zip(shape, spec.shape, strict=True)):
        _refuse(f"tensor {tensor.name!r} has shape {list(shape)}; the model's is {list(spec.shape)}")
    flat = _flat(tensor.data)
    if spec.datatype == "BYTES":
        if not all(isinstance(value, str) for value in flat):
            _refuse(f"tensor {tensor.name!r}: expected texts")
        values = np.empty(len(flat), dtype=object)
        values[:] = flat
        return values.reshape(shape)
    dtype = NUMPY[spec.datatype]
    if dtype.kind == "f":
        flat = [np.nan if value is None else value for value in flat]
    elif not all(isinstance(value, int) for value in flat):
        _refuse(f"tensor {tensor.name!r}: expected whole numbers")
    return np.array(flat, dtype=dtype).reshape(shape)


def _flat(data: list[Any]) -> list[Any]:
    while data and isinstance(data[0], list):
        data = [value for part in data for value in part]
    return data


def _shown(value: Any) -> str:
    return repr(value.item() if hasattr(value, "item") else value)[:60]


def _refuse(why: str) -> None:
    raise ValueError(why)
