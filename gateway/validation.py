"""Input validation: a request's values against the reference that its version was accepted with.

core (route) -> **validation** -> queue. Compiled once per version from its reference profile and the policies in
bundle.toml; a version whose every policy is `pass` has no checks at all. A value can lie outside of the reference's
range, be missing (NaN) where the reference misses none, or be a category that the reference never had. Policy `flag`
notes that in the request's event and in the metrics; `reject` refuses the request.

One row is held against the profile in plain Python, many at once in NumPy; what the quick look does not pass is
looked at again feature by feature.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from operator import contains, itemgetter, le
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.batching import Inference
from gateway.errors import InputOutOfProfile
from gateway.tensors import CODES, string_count, unpack_strings
from loaders.bundle import BundleSettings, InputSettings
from loaders.datatypes import NUMPY
from loaders.reference import InputProfile, Profile
from loaders.signature import Signature, TensorSpec

FLAGS_MAX = 16
"""Flags of one request; what is beyond is told as `more:N` in the last."""
FLAG_NAME_CHARS = 64
"""How much of a feature's name a flag and a refusal hold."""
ROWS_FEW = 32
"""Up to so many rows plain Python is faster than NumPy."""
_SHOWN = 8
"""Categories that a refusal names."""
_TEXT_CHARS = 64

Counter = Callable[[set[str], bool], None]
"""Called with the kinds of what was found in a request, and whether it was refused for that."""


class Finding(NamedTuple):
    """The first value of a feature that is out of profile in one way."""

    row: int
    kind: str
    feature: Feature
    value: Any


class Feature(NamedTuple):
    """What is asked of one column."""

    name: str
    column: int
    low: float
    high: float
    may_miss: bool
    categories: frozenset[Any] | None
    rejects: bool
    expected: str

    def kind_of(self, value: Any) -> str | None:
        """How a value is out of profile; None when it is not."""
        if value != value:  # noqa: PLR0124  NaN
            return None if self.may_miss else "missing"
        if self.categories is not None:
            return None if value in self.categories else "unknown_category"
        return None if self.low <= value <= self.high else "range"


class Checks:
    """The checks of one version.

    Args:
        where: what refusals call the version.
        inputs: position in the signature, and the check of that input.
        count: called for each request with a finding.

    Threading: the loop thread alone. Cost: 1 to 2 us for one row of 13 features in profile, some 15 us for one that
    is not, 0.2 us a row of thousands.
    """

    def __init__(self, where: str, inputs: Sequence[tuple[int, InputCheck]], count: Counter) -> None:
        self._where = where
        self._inputs = tuple(inputs)
        self._count = count

    def check(self, inference: Inference) -> None:
        """Hold a decoded request against the profile; sets its `flags`.

        Raises:
            InputOutOfProfile: a feature with policy `reject` is out of profile; names row, feature, found, expected.
        """
        found: list[tuple[str, Finding]] = []
        for index, one in self._inputs:
            data = inference.inputs[index]
            if one.varies and inference.shapes[index][-1] != one.width:
                self._other_width(one, inference.shapes[index][-1])
            elif not one.passes(data):
                found += [(one.name, finding) for finding in one.find(data)]
        if found:
            self._tell(inference, found)

    def _other_width(self, one: InputCheck, found: int) -> None:
        if one.rejects:
            msg = f"input '{one.name}' has rows of {found} values; the reference of {self._where} has {one.width}"
            raise InputOutOfProfile(msg)

    def _tell(self, inference: Inference, found: list[tuple[str, Finding]]) -> None:
        flags = tuple(dict.fromkeys(f"{f.kind}:{_short(f.feature.name)}" for _, f in found))
        if len(flags) > FLAGS_MAX:
            flags = (*flags[: FLAGS_MAX - 1], f"more:{len(flags) - FLAGS_MAX + 1}")
        inference.flags = flags
        inference.log_bytes += sum(len(flag.encode()) + 5 for flag in flags)
        refused = [(name, finding) for name, finding in found if finding.feature.rejects]
        if not refused:
            self._count({f.kind for _, f in found}, False)
            return
        self._count({f.kind for _, f in refused}, True)
        name, first = min(refused, key=lambda one: one[1].row)
        others = len(refused) - 1
        more = f" (and {others} more)" if others else ""
        msg = (
            f"input '{name}' row {first.row}, feature '{_short(first.feature.name)}': found {_shown(first)},"
            f" expected {_expected(first)}, as in the reference of {self._where}{more}"
        )
        raise InputOutOfProfile(msg)


class InputCheck:
    """The checks of one numeric input.

    Args:
        features: the columns that are checked.
        width: columns of a row.
        cast: what values become before they are compared, where the reference holds shorter floats.
    """

    def __init__(self, spec: TensorSpec, features: Sequence[Feature], width: int, cast: Any = None) -> None:
        self.name, self.width = spec.name, width
        self.varies = len(spec.shape) > 1 and spec.shape[-1] == -1
        self.rejects = any(feature.rejects for feature in features)
        self._features = tuple(features)
        self._dtype, self._cast = NUMPY[spec.datatype], cast
        if spec.datatype != "BYTES":
            self._compile(CODES[spec.datatype])

    def _compile(self, code: str) -> None:
        features, width = self._features, self.width
        self._row = struct.Struct(f"<{width}{code}")
        self._row_bytes = self._row.size
        self._few_bytes = ROWS_FEW * self._row_bytes
        ranged = [f for f in features if f.categories is None]
        listed = [f for f in features if f.categories is not None]
        self._ranged, self._listed = _picker(ranged), _picker(listed)
        self._lows, self._highs = tuple(f.low for f in ranged), tuple(f.high for f in ranged)
        self._sets = tuple(f.categories or frozenset() for f in listed)
        self._tables = [(f, np.array(sorted(f.categories or ()))) for f in listed]
        self._ranged_columns = np.array([f.column for f in ranged], dtype=np.intp)
        self._ranged_features = ranged
        self._low_row, self._high_row = np.array(self._lows), np.array(self._highs)
        self._whole = [f for f in features if not f.may_miss] if self._dtype.kind == "f" else []
        self._whole_columns = np.array([f.column for f in self._whole], dtype=np.intp)

    def passes(self, data: bytes) -> bool:
        """A quick look at a few rows: True only if all of them are in profile. Cost: 1 to 2 us a row."""
        if len(data) > self._few_bytes or len(data) % self._row_bytes:
            return False
        for row in self._row.iter_unpack(data):
            ranged = self._ranged(row)
            if (
                all(map(le, self._lows, ranged))
                and all(map(le, ranged, self._highs))
                and all(map(contains, self._sets, self._listed(row)))
            ):
                continue
            # It may only miss what it may miss.
            if _in_row(self._features, 0, row):
                return False
        return True

    def find(self, data: bytes) -> list[Finding]:
        """What is out of profile: of each feature and kind the first value."""
        if len(data) == self._row_bytes:
            row = self._row.unpack(data)
            if self._cast is not None:
                with np.errstate(over="ignore"):
                    row = tuple(np.array(row).astype(self._cast).tolist())
            return _in_row(self._features, 0, row)
        rows = np.frombuffer(data, self._dtype).reshape(-1, self.width)
        if self._cast is not None:
            with np.errstate(over="ignore"):
                rows = rows.astype(self._cast)
        return list(self._in_rows(rows))

    def _in_rows(self, rows: NDArray[Any]) -> Iterator[Finding]:
        if self._ranged_features:
            values = rows[:, self._ranged_columns]
            # NaN is neither below nor above.
            outside = (values < self._low_row) | (values > self._high_row)
            yield from _firsts("range", self._ranged_features, outside, rows)
        if self._whole:
            missing = np.isnan(rows[:, self._whole_columns])
            yield from _firsts("missing", self._whole, missing, rows)
        for feature, table in self._tables:
            column = rows[:, feature.column]
            known = (
                table[np.minimum(np.searchsorted(table, column), len(table) - 1)] if len(table) else column
            )
            unknown = (column != known) & (column == column)  # noqa: PLR0124  NaN is missing, not unknown
            if not len(table):
                unknown = column == column  # noqa: PLR0124
            yield from _firsts("unknown_category", [feature], unknown[:, None], rows)


class TextCheck(InputCheck):
    """The checks of a BYTES input: every feature is a category."""

    def passes(self, data: bytes) -> bool:
        """Text has no quick look of its own."""
        return False

    def find(self, data: bytes) -> list[Finding]:
        """What is out of profile: of each feature the first value."""
        values = unpack_strings(data, string_count(data), self.name)
        found: dict[str, Finding] = {}
        for row in range(len(values) // self.width):
            cells = values[row * self.width : (row + 1) * self.width]
            for finding in _in_row(self._features, row, cells):
                found.setdefault(finding.feature.name, finding)
        return list(found.values())


def compile_checks(
    profile: Profile | None, settings: BundleSettings, signature: Signature, where: str, count: Counter
) -> Checks | None:
    """The checks of a version; None where every policy is `pass`.

    Args:
        profile: what `loaders.reference.checked_profile` gave: it fits the signature.
        where: what refusals call the version, as in "version 2".
    """
    inputs: list[tuple[int, InputCheck]] = []
    for index, spec in enumerate(signature.inputs):
        found, policies = (profile.inputs if profile else {}).get(spec.name), settings.inputs.get(spec.name)
        features = _features(found, policies) if found and policies else []
        if found is None or not features:
            continue
        width = len(found.features)
        if spec.datatype == "BYTES":
            inputs.append((index, TextCheck(spec, features, width)))
            continue
        narrower = found.kind == "f" and NUMPY[spec.datatype].itemsize > found.item_bytes
        cast = np.dtype(f"<f{found.item_bytes}") if narrower else None
        inputs.append((index, InputCheck(spec, features, width, cast)))
    return Checks(where, inputs, count) if inputs else None


def _features(profile: InputProfile, settings: InputSettings) -> list[Feature]:
    features = []
    for column, one in enumerate(profile.features):
        policy = settings.policies.get(one.name, settings.policy)
        if policy == "pass":
            continue
        low, high = float("-inf"), float("inf")
        expected = "a value: none is missing"
        if one.minimum is not None and one.maximum is not None:
            slack = settings.range_slack * (one.maximum - one.minimum)
            low, high = (one.minimum - slack, one.maximum + slack) if slack else (one.minimum, one.maximum)
            expected = f"{low:.7g}..{high:.7g}"
        categories = None if one.categories is None else frozenset(one.categories)
        if one.categories is not None:
            few = ", ".join(_text(value) for value in one.categories[:_SHOWN])
            expected = f"one of {len(one.categories)} categories: {few}" + (
                ", …" if len(one.categories) > _SHOWN else ""
            )
        features.append(
            Feature(one.name, column, low, high, one.has_missing, categories, policy == "reject", expected)
        )
    return features


def _in_row(features: Sequence[Feature], row: int, values: Sequence[Any]) -> list[Finding]:
    found = []
    for feature in features:
        value = values[feature.column]
        kind = feature.kind_of(value)
        if kind is not None:
            found.append(Finding(row, kind, feature, value))
    return found


def _firsts(
    kind: str, features: Sequence[Feature], wrong: NDArray[Any], rows: NDArray[Any]
) -> Iterator[Finding]:
    """A finding for each column of `wrong` that holds any, at its first row."""
    for index in np.flatnonzero(wrong.any(axis=0)).tolist():
        feature, row = features[index], int(wrong[:, index].argmax())
        yield Finding(row, kind, feature, rows[row, feature.column].item())


def _picker(features: Sequence[Feature]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    columns = [feature.column for feature in features]
    if not columns:
        return lambda row: ()
    if len(columns) == 1:
        only = columns[0]
        return lambda row: (row[only],)
    return itemgetter(*columns)


def _expected(finding: Finding) -> str:
    return "a value: none is missing" if finding.kind == "missing" else finding.feature.expected


def _shown(finding: Finding) -> str:
    return "no value" if finding.kind == "missing" else _text(finding.value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return repr(value[:_TEXT_CHARS])
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _short(name: str) -> str:
    return name[:FLAG_NAME_CHARS]
