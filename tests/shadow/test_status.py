"""A monitor can be seen: what it says of itself, and what `/metrics` makes of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from shadow.act import Pending
from shadow.rollouts import Labelled
from shadow.state import WatchState
from shadow.status import write_status

MICRO = 1_000_000


def test_what_it_says_is_whole(tmp_path: Path) -> None:
    """Ticks, staleness, what is not in effect; a staleness that is not known is none."""
    path = tmp_path / "status.json"
    pending = [Pending(model="m", rollout=1, variant="canary", version="2", says="so", event="e")]
    write_status(path, WatchState(tick=7, incomplete_ticks=1), pending, 0.5, 123)
    said = json.loads(path.read_bytes())
    assert (said["at_ns"], said["ticks"], said["incomplete_ticks"], said["stale_s"]) == (123, 7, 1, 0.5)
    assert said["pending"] == [{"model": "m", "version": "2", "decision": "e"}]
    write_status(path, WatchState(), [], math.inf, 124)
    assert json.loads(path.read_bytes())["stale_s"] is None


def test_a_disk_that_takes_nothing_ends_nothing(tmp_path: Path) -> None:
    """It is not worth dying of."""
    write_status(tmp_path / "not there" / "status.json", WatchState(), [], 0.0, 1)


@pytest.mark.parametrize(
    ("labelled", "even"),
    [
        (Labelled(), True),
        (Labelled(0, 0, 900 * MICRO, 1000 * MICRO), True),
        (Labelled(200 * MICRO, 1000 * MICRO, 1800 * MICRO, 9000 * MICRO), True),
        (Labelled(300 * MICRO, 1000 * MICRO, 1800 * MICRO, 9000 * MICRO), False),
        (Labelled(3 * MICRO, 10 * MICRO, 1800 * MICRO, 9000 * MICRO), True),
        (Labelled(1000 * MICRO, 1000 * MICRO, 9000 * MICRO, 9000 * MICRO), True),
        (Labelled(950 * MICRO, 1000 * MICRO, 9000 * MICRO, 9000 * MICRO), False),
    ],
)
def test_labels_are_even_within_chance(labelled: Labelled, even: bool) -> None:
    """Two points and four standard errors are chance; more is an arm that is looked at otherwise."""
    assert labelled.is_even is even
