"""A sidecar that is killed again before it has committed a tick of its own counts nothing twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.audit.drained import sources_of
from gateway.audit.event import Verdict
from gateway.audit.feed import Hole, Positions
from gateway.audit.spool_feed import SpoolFeed
from gateway.errors import LogIncomplete
from shadow.runner import Runner
from shadow.verdicts import spool_verdicts, stored_ticks
from tests.gateway.audit.sim import GATEWAY_ID, Log, settle
from tests.shadow.story import Stage, prediction, route


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A log and a sidecar in this process; one canary."""
    (tmp_path / "models").mkdir()
    stage = Stage(Log(tmp_path / "state"), tmp_path / "models")
    stage.sidecar.adopt([])
    stage.say(route(1, canary="2"))
    yield stage
    stage.sidecar.close()


def _die(stage: Stage, database: Path, *, put_back: Path | None = None) -> None:
    """Kill -9 the sidecar, before its last commit where that is put back; the next one has adopted what it found."""
    stage.sidecar._parts.store.close()
    if put_back is not None:
        shutil.copy(put_back, database)
    settle(stage.recorder)
    stage.sidecar = stage.start()
    own = sources_of(GATEWAY_ID, "sidecar")
    cut = stage.sidecar._saved.cut
    stage.sidecar.adopt(stored_ticks(spool_verdicts(stage.log.spool, own, cut)))


def test_a_sidecar_killed_behind_an_adopted_tick_counts_nothing_twice(stage: Stage, tmp_path: Path) -> None:
    """Its feed was ahead of the cut when it committed, so the next one's begins before it."""
    database, before = tmp_path / "state" / "sidecar" / "state.db", tmp_path / "before.db"
    stage.tick()
    shutil.copy(database, before)
    stage.say(*(prediction(1, "primary", 9_000, "1") for _ in range(10)))
    stage.tick()
    stage.say(*(prediction(1, "canary", 1_000, "2") for _ in range(5)))
    _die(stage, database, put_back=before)
    assert stage.sidecar.watch.state.tick == 2
    _die(stage, database)
    stage.tick()
    state = stage.sidecar.watch.state
    assert (state.tick, state.counts["done"]) == (3, 15)
    assert state.rollouts.active[0].requests == 5


def test_a_lost_state_heals_from_a_log_that_was_trimmed(stage: Stage) -> None:
    """Ticks whose records are gone are incomplete; their numbers go on, and so does the watch."""
    database = stage.log.state_dir / "sidecar" / "state.db"
    for worker in (0, 1):
        stage.say(*(prediction(1, "primary", 9_000, "1") for _ in range(10)), worker=worker)
        stage.tick()
    stage.sidecar._parts.store.close()
    database.unlink()
    gone = stage.workers[0].source.source
    shutil.rmtree(stage.log.spool / f"{gone:016x}")
    stage.sidecar = stage.start()
    own = sources_of(GATEWAY_ID, "sidecar")
    stored = stored_ticks(spool_verdicts(stage.log.spool, own, {}))
    with pytest.raises(LogIncomplete):
        stage.sidecar.adopt(stored)
    stage.sidecar._parts.store.close()
    stage.sidecar = stage.start()
    stage.sidecar.adopt(stored, gone_is_missing=True)
    state = stage.sidecar.watch.state
    assert (state.tick, state.incomplete_ticks, state.counts["done"]) == (2, 1, 10)
    stage.say(prediction(1, "primary", 9_000, "1"), worker=1)
    stage.tick()
    assert (state.tick, state.incomplete_ticks, state.counts["done"]) == (3, 1, 11)


class _Taken:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.seqs: list[int] = []

    def take(self, event: object) -> None:
        assert not isinstance(event, Verdict)
        self.seqs.append(int(str(getattr(event, "id", ""))[-16:], 16))

    def take_hole(self, hole: Hole) -> None:
        pytest.fail(f"no hole was made: {hole}")


@pytest.mark.parametrize("place", [0, 2, 6])
def test_what_lies_below_the_cut_is_dropped(stage: Stage, place: int) -> None:
    """Wherever at or before the cut the feed is opened, reading and reading to a cut give the same."""
    ids = stage.say(*(prediction(1, "primary", 9_000, "1") for _ in range(12)))
    key = ids[0][:25]
    first = int(ids[0][-16:], 16)
    source = frozenset((int(key[:16], 16),))
    cut: Positions = {key: first + 6}
    for read in ("on", "to"):
        taken = _Taken()
        feed = SpoolFeed(stage.log.spool, {key: first + place})
        runner = Runner(feed, taken, cut, source)
        if read == "on":
            runner.read()
        else:
            assert runner.read_to({key: (first + 6, first + 12)}, 0)
        assert taken.seqs == list(range(first + 6, first + 12))
        feed.close()
