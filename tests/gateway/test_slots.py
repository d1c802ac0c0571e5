"""Slots are used again: by one version at a time, from zero, and nobody reads another's counters."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import fleet as words_of
from gateway.control import snapshot
from gateway.control import state as control_state
from gateway.control.state import State, placed
from gateway.counting import Counting
from gateway.errors import StateConflict
from gateway.fleet import SLOTS, Fleet


def test_thousands_of_versions_come_and_go() -> None:
    """Each has a slot of its own while it is wanted, and a slot rests as long as can be before it is another's."""
    state = State(snapshot.Serving(gateway_id="g", generation=1), snapshot.Ledger())
    freed: dict[int, int] = {}
    for cycle in range(5000):
        found = {"kept": ("1",), f"m{cycle}": ("1",), f"m{cycle + 1}": ("1",)}
        before = {d.slot for d in state.serving.versions}
        state = placed(state, found)
        slots = [d.slot for d in state.serving.versions]
        assert len(set(slots)) == len(slots) == 3
        assert all(0 <= slot < SLOTS for slot in slots)
        for slot in before - set(slots):
            freed[slot] = cycle
        for slot in set(slots) - before:
            assert cycle - freed.get(slot, -SLOTS) > SLOTS - 10


def test_more_at_a_time_than_there_are_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, with what to do; a version that leaves makes room for one that comes in the same change."""
    monkeypatch.setattr(control_state, "SLOTS", 2)
    state = State(snapshot.Serving(gateway_id="g", generation=1), snapshot.Ledger())
    state = placed(state, {"a": ("1",), "b": ("1",)})
    with pytest.raises(StateConflict, match="2 versions are loaded; unload some"):
        placed(state, {"a": ("1",), "b": ("1",), "c": ("1",)})
    after = placed(state, {"b": ("1",), "c": ("1",)})
    assert {d.model: d.slot for d in after.serving.versions} == {"b": 1, "c": 0}


def test_counters_of_another_version_are_not_read(tmp_path: Path) -> None:
    """Until a worker has taken a slot over, it counts as nothing; then from zero."""
    fleet = Fleet.create(tmp_path / "fleet", 1)
    assert fleet.owner(0, 3) is None
    assert fleet.take(0, 3, "old", "1")
    words = fleet.slot(0, 3)
    words[words_of.DONE] = 7
    words[words_of.LOAD_STATE] = words_of.READY
    fleet.set_reason(0, 3, "of the old")
    assert not fleet.take(0, 3, "old", "1")
    assert fleet.version(0, 3, "old", "1")[words_of.DONE] == 7
    assert not any(fleet.version(0, 3, "new", "12"))
    assert fleet.take(0, 3, "new", "12")
    assert fleet.owner(0, 3) == ("new", "12")
    assert fleet.version(0, 3, "new", "12")[words_of.DONE] == 0
    assert fleet.reason(0, 3) == ""
    assert not any(fleet.version(0, 3, "old", "1"))


def test_longest_names_fit(tmp_path: Path) -> None:
    """A name of 128 characters and a version of 18 digits come back whole."""
    fleet = Fleet.create(tmp_path / "fleet", 1)
    fleet.take(0, 0, "m" * 128, "9" * 18)
    assert fleet.owner(0, 0) == ("m" * 128, "9" * 18)


def test_what_is_under_way_counts_in_no_other_slot(tmp_path: Path) -> None:
    """A run of the former version that ends after its slot was given away leaves the new one's counters alone."""
    fleet = Fleet.create(tmp_path / "fleet", 1)
    fleet.take(0, 0, "old", "1")
    former = Counting(fleet.slot(0, 0))
    former.admitted(5, 2)
    fleet.take(0, 0, "new", "1")
    former.leave()
    former.admitted(6, 0)
    former.dropped("cancelled")
    former.store()
    words = fleet.version(0, 0, "new", "1")
    assert [words[w] for w in (words_of.ADMITTED, words_of.RECORDED, words_of.CANCELLED)] == [0, 0, 0]
