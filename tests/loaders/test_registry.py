"""Which versions are loaded, in what state, and why."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from loaders.errors import ModelInvalid, ModelUnreadable
from loaders.registry import DRAINING, FAILED, LOADING, READY, UNLOADED, Registry

WITHIN_S = 5.0


class Bench:
    """A registry over stand-ins for sessions.

    Attributes:
        broken: versions that fail to load, with what is raised.
        gate: closed, loading waits.
    """

    def __init__(self) -> None:
        self.broken: dict[str, Exception] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.told: list[tuple[str, str, str | None]] = []
        self._changed = threading.Condition()
        self.loads = 0
        self.registry = Registry(self.load, self.on_change, (0.0, 0.001))

    def load(self, model: str, version: str) -> Any:
        """What the loader thread calls."""
        assert self.gate.wait(WITHIN_S)
        with self._changed:
            self.loads += 1
            self._changed.notify_all()
        if version in self.broken:
            raise self.broken[version]
        return object()

    def on_change(self, model: str, version: str, state: str, reason: str | None) -> None:
        """What the registry tells."""
        with self._changed:
            self.told.append((version, state, reason))
            self._changed.notify_all()

    def want(self, *versions: str) -> None:
        """These, and no other."""
        self.registry.want(("m", v) for v in versions)

    def until(self, *last: tuple[str, str]) -> None:
        """Wait until the newest state of each version is this."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: {**{v: s for v, s, _ in self.told}, **dict(last)} == {v: s for v, s, _ in self.told},
                WITHIN_S,
            ), self.told

    def until_told(self, count: int) -> None:
        """Wait until so many states were told."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.told) >= count, WITHIN_S), self.told


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Ended with the test."""
    made = Bench()
    yield made
    made.gate.set()
    made.registry.close()


def test_loads_in_order_and_lets_go(bench: Bench) -> None:
    """Versions load one after another by number; what is no longer wanted goes, what stays is not loaded anew."""
    bench.want("10", "2")
    bench.until(("10", READY))
    kept = bench.registry.get("m", "10")
    bench.want("10")
    bench.until(("2", UNLOADED))
    assert [t[:2] for t in bench.told] == [
        ("2", LOADING),
        ("2", READY),
        ("10", LOADING),
        ("10", READY),
        ("2", DRAINING),
        ("2", UNLOADED),
    ]
    assert bench.registry.get("m", "2") is None
    assert bench.registry.get("m", "10") is kept is not None


def test_session_is_there_before_it_is_told() -> None:
    """Who hears `ready` finds the session."""
    seen: list[bool] = []
    over = threading.Event()

    def told(model: str, version: str, state: str, reason: str | None) -> None:
        if state == READY:
            seen.append(registry.get(model, version) is not None)
            over.set()

    registry = Registry(lambda model, version: object(), told)  # type: ignore[arg-type, return-value]
    registry.want([("m", "1")])
    assert over.wait(WITHIN_S)
    assert seen == [True]
    registry.close()


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (ModelInvalid("m/1: bad file"), "m/1: bad file"),
        (RuntimeError("/srv/models/m"), "it cannot be loaded: RuntimeError"),
        (MemoryError(), "it cannot be loaded: MemoryError"),
    ],
)
def test_failed_stays_failed(bench: Bench, raised: Exception, reason: str) -> None:
    """A failed version is told with its reason, stops no other, and is not tried again by itself."""
    bench.broken["1"] = raised
    bench.want("1", "2")
    bench.until(("1", FAILED), ("2", READY))
    del bench.broken["1"]
    bench.want("1", "2", "3")
    bench.until(("3", READY))
    assert bench.registry.states()["m", "1"] == (FAILED, reason)
    assert [t for t in bench.told if t[0] == "1"] == [("1", LOADING, None), ("1", FAILED, reason)]


def test_failed_is_tried_again_on_request(bench: Bench) -> None:
    """`retry`, or leaving the set and coming back."""
    bench.broken["1"] = ModelInvalid("bad")
    bench.want("1")
    bench.until(("1", FAILED))
    bench.registry.retry("m", "1")
    bench.until_told(4)
    assert [state for _, state, _ in bench.told] == [LOADING, FAILED] * 2
    bench.want()
    del bench.broken["1"]
    bench.want("1")
    bench.until(("1", READY))
    bench.registry.retry("m", "1")
    assert bench.registry.get("m", "1") is not None


def test_no_longer_wanted_before_its_turn(bench: Bench) -> None:
    """What left the set while it waited is not loaded; what left it while loading goes at once."""
    bench.gate.clear()
    bench.want("1", "2")
    bench.until(("1", LOADING))
    bench.want()
    bench.want("3")
    bench.gate.set()
    bench.until(("3", READY), ("1", UNLOADED))
    assert "2" not in {version for version, _, _ in bench.told}


def test_want_back_while_it_waits_to_go(bench: Bench) -> None:
    """A version that is wanted again before it was let go stays."""
    bench.want("1")
    bench.until(("1", READY))
    kept = bench.registry.get("m", "1")
    bench.gate.clear()
    bench.want("1", "2")
    bench.until(("2", LOADING))
    bench.want("2")
    bench.want("1", "2", "3")
    bench.gate.set()
    bench.until(("3", READY))
    assert bench.registry.get("m", "1") is kept


def test_told_again_when_wanted_back(bench: Bench) -> None:
    """Who took a version out and in again while the loader was busy hears once more that it is ready."""
    bench.want("1")
    bench.until(("1", READY))
    bench.gate.clear()
    bench.want("1", "2")
    bench.until(("2", LOADING))
    bench.want("2")
    bench.want("1", "2")
    bench.want("1", "2", "3")
    bench.gate.set()
    bench.until(("3", READY))
    assert [state for version, state, _ in bench.told if version == "1"] == [LOADING, READY, READY]


def test_failing_while_out_of_the_set_is_tried_again(bench: Bench) -> None:
    """A version that fails to load while it is not wanted is loaded again for who wants it back."""
    bench.broken["1"] = ModelInvalid("bad")
    bench.gate.clear()
    bench.want("1")
    bench.until(("1", LOADING))
    bench.want()
    failed = threading.Event()
    told = bench.registry._on_change

    def once(*change: Any) -> None:
        told(*change)
        if change[2] == FAILED:
            bench.broken.clear()
            bench.want("1")
            failed.set()

    bench.registry._on_change = once
    bench.gate.set()
    assert failed.wait(WITHIN_S)
    bench.until(("1", READY))


def test_an_unreadable_moment_passes(bench: Bench) -> None:
    """A version whose files cannot be read is failed with the reason, told once, and ready once they can."""
    bench.broken["1"] = ModelUnreadable("m/1: model.onnx: No such file")
    bench.want("1", "2")
    bench.until(("1", FAILED), ("2", READY))
    with bench._changed:
        assert bench._changed.wait_for(lambda: bench.loads >= 10, WITHIN_S)
    assert bench.registry.states()["m", "1"] == (
        FAILED,
        "m/1: model.onnx: No such file; it is tried again by itself",
    )
    bench.broken.clear()
    bench.until(("1", READY))
    assert [state for version, state, _ in bench.told if version == "1"] == [LOADING, FAILED, READY]


def test_unreadable_and_then_bad_stays_failed(bench: Bench) -> None:
    """Once its files can be read and are no model, the new reason is told and it rests."""
    bench.broken["1"] = ModelUnreadable("away")
    bench.want("1")
    bench.until(("1", FAILED))
    bench.broken["1"] = ModelInvalid("bad")
    bench.until_told(3)
    loads = bench.loads
    bench.want("1", "2")
    bench.until(("2", READY))
    assert bench.told[2] == ("1", FAILED, "bad")
    assert bench.loads == loads + 1


def test_unreadable_and_no_longer_wanted_is_let_be(bench: Bench) -> None:
    """Out of the set it is not tried again."""
    bench.broken["1"] = ModelUnreadable("away")
    bench.want("1")
    bench.until(("1", FAILED))
    bench.want("2")
    bench.until(("2", READY))
    loads = bench.loads
    bench.want("2", "3")
    bench.until(("3", READY))
    assert bench.loads == loads + 1
    assert ("m", "1") not in bench.registry.states()


def test_close_ends_what_waits(bench: Bench) -> None:
    """After `close` the version at work is finished, and none behind it is begun."""
    bench.gate.clear()
    bench.want("1", "2")
    bench.until(("1", LOADING))
    bench.registry.close()
    bench.gate.set()
    bench.until(("1", READY))
    bench.registry._thread.join(WITHIN_S)
    assert not bench.registry._thread.is_alive()
    assert bench.registry.get("m", "2") is None
