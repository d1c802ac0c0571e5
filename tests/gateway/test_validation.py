"""Input validation: what is out of the reference is found, named and counted, in one row as in many."""

from __future__ import annotations

import asyncio
import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import counting
from gateway import fleet as words_of
from gateway.admission import HUNG_MAX
from gateway.batching import Inference
from gateway.errors import InputOutOfProfile
from gateway.tensors import pack_strings
from gateway.validation import FLAGS_MAX, ROWS_FEW, Checks, compile_checks
from loaders.bundle import BundleSettings, InputSettings
from loaders.datatypes import NUMPY
from loaders.reference import FeatureProfile, InputProfile, Profile
from loaders.signature import Signature, TensorSpec
from tests.gateway.path import Path_, SumSession, until

NAN = float("nan")
FEATURES = (
    FeatureProfile("temp", 10.0, 20.0, has_missing=False, categories=None),
    FeatureProfile("carrier", 0.0, 5.0, has_missing=False, categories=(0.0, 2.0, 5.0)),
    FeatureProfile("humid", -1.0, 1.0, has_missing=True, categories=None),
    FeatureProfile("never", None, None, has_missing=True, categories=None),
)
GOOD = [15.0, 2.0, 0.0, NAN]


def compiled(
    policy: Any = "flag", *, datatype: str = "FP32", features: Any = FEATURES, kind: str = "f4", **more: Any
) -> tuple[Checks, list[tuple[set[str], bool]]]:
    """Checks of one input X, and what they counted."""
    settings = BundleSettings(inputs={"X": InputSettings(policy=policy, **more)})
    profile = Profile({"X": InputProfile("X", kind[0], int(kind[1:]), 9, features)})
    signature = Signature((TensorSpec("X", datatype, (-1, len(features))),), ())
    counted: list[tuple[set[str], bool]] = []
    checks = compile_checks(
        profile, settings, signature, "version 2", lambda kinds, refused: counted.append((kinds, refused))
    )
    assert checks is not None
    return checks, counted


def flags_of(checks: Checks, rows: Any, datatype: str = "FP32") -> tuple[str, ...]:
    """Flags of a request with these rows."""
    inference = Inference(None, 0)
    data = pack_strings(rows) if datatype == "BYTES" else np.array(rows, NUMPY[datatype]).tobytes()
    inference.inputs = [data]
    checks.check(inference)
    return inference.flags


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        (GOOD, ()),
        ([10.0, 0.0, NAN, 1e30], ()),
        ([9.5, 2.0, 0.0, NAN], ("range:temp",)),
        ([math.inf, 2.0, 0.0, NAN], ("range:temp",)),
        ([NAN, 2.0, 0.0, NAN], ("missing:temp",)),
        ([15.0, 3.0, 0.0, NAN], ("unknown_category:carrier",)),
        ([15.0, 9.0, 0.0, NAN], ("unknown_category:carrier",)),
        ([15.0, NAN, 0.0, NAN], ("missing:carrier",)),
        ([21.0, 3.0, -2.0, NAN], ("range:temp", "unknown_category:carrier", "range:humid")),
    ],
)
def test_what_is_out_of_profile(row: list[float], flags: tuple[str, ...]) -> None:
    """Outside of the range, missing where nothing was, a category never seen; bounds are inside."""
    checks, counted = compiled()
    assert flags_of(checks, [row]) == flags
    assert counted == ([({flag.partition(":")[0] for flag in flags}, False)] if flags else [])


VALUES = st.sampled_from([NAN, -math.inf, math.inf, 0.0, 1.0, 2.0, 5.0, 9.0, 10.0, 15.0, 20.0, 25.0, 3e38])


@given(st.lists(st.lists(VALUES, min_size=4, max_size=4), min_size=1, max_size=ROWS_FEW + 8))
def test_many_rows_are_as_each_of_them(rows: list[list[float]]) -> None:
    """The quick look, plain Python and NumPy agree: a request's flags are those of its rows together."""
    checks, _ = compiled()
    each = {flag for row in rows for flag in flags_of(checks, [row])}
    assert set(flags_of(checks, rows)) == each
    padded = [*rows, *[GOOD] * ROWS_FEW]
    assert set(flags_of(checks, padded)) == each


@pytest.mark.parametrize("count", [1, ROWS_FEW, ROWS_FEW + 1])
def test_a_refusal_names_row_feature_found_and_expected(count: int) -> None:
    """The first row that is out, whichever way it was looked at."""
    checks, counted = compiled("reject")
    rows = [list(GOOD) for _ in range(count)]
    rows[-1][0], rows[-1][1] = 99.5, 7.0
    with pytest.raises(InputOutOfProfile) as refused:
        flags_of(checks, rows)
    assert str(refused.value) == (
        f"input 'X' row {count - 1}, feature 'temp': found 99.5, expected 10..20,"
        " as in the reference of version 2 (and 1 more)"
    )
    assert counted == [({"range", "unknown_category"}, True)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([15.0, 4.0, 0.0, 0.0], "feature 'carrier': found 4, expected one of 3 categories: 0, 2, 5, as"),
        ([NAN, 2.0, 0.0, 0.0], "feature 'temp': found no value, expected a value: none is missing, as"),
    ],
)
def test_a_refusal_says_what_was_expected(row: list[float], says: str) -> None:
    """In the words of its kind."""
    with pytest.raises(InputOutOfProfile, match=says):
        flags_of(compiled("reject")[0], [row])


def test_each_feature_has_its_policy() -> None:
    """Pass is not looked at, flag is noted, reject refuses; flags of a refused request are kept."""
    checks, counted = compiled("pass", policies={"temp": "flag", "humid": "reject"})
    assert flags_of(checks, [[NAN, 99.0, 0.0, 0.0]]) == ("missing:temp",)
    inference = Inference(None, 0)
    inference.inputs = [np.array([[0, 99, 9, 0]], np.float32).tobytes()]
    with pytest.raises(InputOutOfProfile, match=r"feature 'humid': found 9, expected -1\.\.1, as"):
        checks.check(inference)
    assert inference.flags == ("range:temp", "range:humid")
    assert counted == [({"missing"}, False), ({"range"}, True)]


def test_slack_widens_the_range() -> None:
    """By a share of its width, at both ends."""
    checks, _ = compiled(range_slack=0.1)
    assert [flags_of(checks, [[t, 2.0, 0.0, 0.0]]) for t in (9.0, 21.0)] == [(), ()]
    assert [flags_of(checks, [[t, 2.0, 0.0, 0.0]]) for t in (8.9, 21.1)] == [("range:temp",)] * 2


@pytest.mark.parametrize("count", [1, ROWS_FEW + 1])
def test_longer_floats_are_compared_as_the_reference_holds_them(count: int) -> None:
    """0.1 as FP64 is the 0.1 that a reference of FP32 rows has, as bound and as category."""
    tenth = struct.unpack("<f", struct.pack("<f", 0.1))[0]
    features = (
        FeatureProfile("a", tenth, 1.0, False, None),
        FeatureProfile("b", tenth, tenth, False, (tenth,)),
    )
    checks, _ = compiled(features=features, datatype="FP64")
    assert flags_of(checks, [[0.1, 0.1]] * count, "FP64") == ()
    flags = ("range:a", "unknown_category:b")
    assert flags_of(checks, [[0.0999999, 0.2]] * count, "FP64") == flags


@pytest.mark.parametrize("count", [1, ROWS_FEW + 1])
@pytest.mark.parametrize(
    ("datatype", "kind"), [("INT64", "i8"), ("INT32", "f4"), ("UINT8", "u1"), ("FP16", "f4")]
)
def test_other_kinds_of_numbers(datatype: str, kind: str, count: int) -> None:
    """Integers are never missing; a reference of floats will do for them."""
    features = (FeatureProfile("a", 3, 7, False, None), FeatureProfile("b", 1, 9, False, (1, 9)))
    checks, _ = compiled(features=features, datatype=datatype, kind=kind)
    assert flags_of(checks, [[3, 9]] * count, datatype) == ()
    assert flags_of(checks, [[8, 2]] * count, datatype) == ("range:a", "unknown_category:b")


def test_text_is_categories() -> None:
    """BYTES are held against the reference's words."""
    features = (
        FeatureProfile("from", None, None, False, ("EWR", "JFK")),
        FeatureProfile("to", None, None, False, ("ORD",)),
    )
    checks, _ = compiled(features=features, datatype="BYTES", kind="U4")
    assert flags_of(checks, ["EWR", "ORD", "JFK", "ORD"], "BYTES") == ()
    assert flags_of(checks, ["EWR", "ORD", "JFK", "LAX"], "BYTES") == ("unknown_category:to",)
    rejecting, _ = compiled("reject", features=features, datatype="BYTES", kind="U4")
    with pytest.raises(
        InputOutOfProfile, match="row 1, feature 'to': found 'LAX', expected one of 1 categories"
    ):
        flags_of(rejecting, ["EWR", "ORD", "JFK", "LAX"], "BYTES")


def test_rows_of_another_width() -> None:
    """A model that takes rows of any width: what the reference says nothing of is refused only where it may be."""
    for policy in ("flag", "reject"):
        settings = BundleSettings(inputs={"X": InputSettings(policy=policy)})  # type: ignore[arg-type]
        profile = Profile({"X": InputProfile("X", "f", 4, 9, FEATURES)})
        signature = Signature((TensorSpec("X", "FP32", (-1, -1)),), ())
        checks = compile_checks(profile, settings, signature, "version 2", lambda kinds, refused: None)
        assert checks is not None
        inference = Inference(None, 0)
        inference.inputs, inference.shapes = [bytes(4 * 5)], [(1, 5)]
        if policy == "flag":
            checks.check(inference)
            assert inference.flags == ()
        else:
            with pytest.raises(InputOutOfProfile, match="rows of 5 values; the reference of version 2 has 4"):
                checks.check(inference)


def test_no_rows() -> None:
    """Nothing is out of profile."""
    assert flags_of(compiled("reject")[0], np.zeros((0, 4))) == ()


def test_flags_are_bounded() -> None:
    """However many features are out, and however long their names are."""
    features = tuple(FeatureProfile(f"{i}" + "ü" * 200, 0.0, 1.0, False, None) for i in range(100))
    checks, _ = compiled(features=features)
    flags = flags_of(checks, [[9.0] * 100])
    assert len(flags) == FLAGS_MAX
    assert flags[-1] == f"more:{100 - FLAGS_MAX + 1}"
    assert max(map(len, flags)) < 100


def test_all_pass_is_no_checks() -> None:
    """A version that asks for nothing costs nothing."""
    settings = BundleSettings(inputs={"X": InputSettings(policies={"temp": "pass"})})
    profile = Profile({"X": InputProfile("X", "f", 4, 9, FEATURES)})
    signature = Signature((TensorSpec("X", "FP32", (-1, 4)),), ())
    for one in (profile, None):
        assert compile_checks(one, settings, signature, "version 1", lambda kinds, refused: None) is None


def test_on_the_path(tmp_path: Path) -> None:
    """Flags are in the request's own event and counted; a refused request's, too, with route and version."""

    async def play(policy: Any) -> tuple[Path_, list[Any], list[Any]]:
        session = SumSession()
        features = tuple(FeatureProfile(name, 0.0, 9.0, False, None) for name in "abcd")
        session.profile = Profile({"X": InputProfile("X", "f", 4, 9, features)})
        session.bundle.settings = BundleSettings(inputs={"X": InputSettings(policy=policy)})
        directory = tmp_path / policy
        directory.mkdir()
        path = Path_(directory, session=session)
        sinks = [path.send([1, 2, 3, 4]), path.send([1, 2, 3, 99]), path.send([4, 3, 2, 1])]
        await until(lambda: all(sink.status for sink in sinks))
        path.close()
        return path, sinks, path.predictions()

    path, sinks, events = asyncio.run(play("flag"))
    assert [sink.status for sink in sinks] == [200] * 3
    assert [event.flags for event in events] == [(), ("range:d",), ()]
    assert len(path.session.runs) == 1
    counting.publish()
    assert path.fleet.slot(0, 0)[words_of.FLAGGED0] == 1

    path, sinks, events = asyncio.run(play("reject"))
    assert [sink.status for sink in sinks] == [200, 400, 200]
    assert sinks[1].body["code"] == "input_out_of_profile"
    (refused,) = [event for event in events if event.kind == "refused"]
    assert (refused.flags, refused.code, refused.model.version) == (("range:d",), "input_out_of_profile", "1")
    assert refused.route is not None
    counting.publish()
    slot = path.fleet.slot(0, 0)
    assert (slot[words_of.FLAGGED0], slot[words_of.REJECTED0], slot[words_of.DONE]) == (0, 1, 2)


def test_who_is_not_admitted_is_not_looked_at(tmp_path: Path) -> None:
    """A request that is refused for want of time has no flags and counts as none."""

    async def play() -> tuple[Any, list[Any], Path_]:
        session = SumSession()
        features = tuple(FeatureProfile(name, 0.0, 9.0, False, None) for name in "abcd")
        session.profile = Profile({"X": InputProfile("X", "f", 4, 9, features)})
        session.bundle.settings = BundleSettings(inputs={"X": InputSettings(policy="flag")})
        path = Path_(tmp_path, session=session)
        version = path.models.entries["sum"].versions["1"]
        version.free_rows, version.hung = -1, HUNG_MAX
        sink = path.send([1, 2, 3, 99])
        path.core.turn()
        path.close()
        return sink, path.predictions(), path

    sink, (event,), path = asyncio.run(play())
    assert (sink.status, event.kind, event.flags) == (503, "refused", ())
    counting.publish()
    assert path.fleet.slot(0, 0)[words_of.FLAGGED0] == 0


def test_flags_need_no_more_room_than_is_reckoned(tmp_path: Path) -> None:
    """What a request's flags take in the log counts for it, so that a frame is never too large."""
    features = tuple(FeatureProfile(f"{i}" + "ü" * 200, 0.0, 1.0, False, None) for i in range(100))
    checks, _ = compiled(features=features)
    inference = Inference(None, 0)
    inference.inputs = [np.full(100, 9, np.float32).tobytes()]
    checks.check(inference)
    assert len(msgspec.msgpack.encode(inference.flags)) <= inference.log_bytes
