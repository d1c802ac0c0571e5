"""What retention took before the sidecar read it, and what it took after: verdicts rest on whole windows only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.audit.drained import sources_of
from gateway.audit.event import Event, Gap
from gateway.audit.feed import RETENTION, Delivery, Skipped
from gateway.audit.spool import epoch_path
from shadow.replay import fold
from shadow.state import Tick
from shadow.verdicts import Stored, stored_after
from tests.gateway.audit.sim import GATEWAY_ID, Killed, Log, forget_owner, settle
from tests.shadow.play import WORKERS, Arm, ListFeed, Play, traffic
from tests.shadow.story import Stage, route

ARMS = {"primary": (8000, Arm("1")), "canary": (2000, Arm("2"))}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A rollout, one tick old."""
    made = Stage(Log(tmp_path / "state"), tmp_path / "models")
    made.sidecar.adopt([])
    made.say(route(1), route(2, canary="2", weight_bp=2000))
    made.say(*traffic(20, 2, ARMS, 0))
    made.tick()
    return made


def end_worker(stage: Stage, *, is_told: bool = True) -> tuple[str, int]:
    """The second worker answers, ends, and retention takes all of its epoch; the source and the last number."""
    stage.say(*traffic(20, 2, ARMS, 1), worker=1)
    worker = stage.workers.pop()
    worker.close()
    source, last = worker.source, worker.ring.assigned - 1
    forget_owner(worker)
    settle(stage.recorder)
    shutil.rmtree(epoch_path(stage.log.spool, source.source, source.epoch).path)
    if is_told:
        stage.recorder._log([Gap(f"{source.source:016x}", source.epoch, 0, last, RETENTION)])
    settle(stage.recorder)
    return f"{source.source:016x}-{source.epoch:08x}", last


def test_what_was_taken_unread_makes_its_tick_incomplete(stage: Stage) -> None:
    """The numbers stand in the tick; the next one is whole again."""
    assert stage.sidecar.watch.state.complete
    key, last = end_worker(stage)
    stage.tick()
    assert not stage.sidecar.watch.state.complete
    _, missed = stored_after(stage.log.spool, sources_of(GATEWAY_ID, "sidecar"), {})
    assert missed.missing == (f"{key} 1..{last}",)
    stage.say(*traffic(20, 2, ARMS, 2))
    stage.tick()
    assert stage.sidecar.watch.state.complete
    assert stage.sidecar.watch.state.incomplete_ticks == 1


def test_what_was_taken_before_a_tick_was_adopted(stage: Stage) -> None:
    """Logged, not committed, and its records are gone when the successor folds it: given up, and incomplete."""
    stage.say(*traffic(20, 2, ARMS, 3), worker=1)

    def killed() -> None:
        raise Killed

    stage.sidecar._parts.store.commit = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        stage.tick()
    stage.die()
    end_worker(stage, is_told=False)
    settle(stage.recorder)
    stage.sidecar = stage.start()
    own = sources_of(GATEWAY_ID, "sidecar")
    settle(stage.recorder)
    stored = stored_after(stage.log.spool, own, stage.sidecar._saved.cut)
    stage.sidecar.adopt(stored, gone_is_missing=True)
    assert stage.sidecar.watch.state.tick == 2
    assert not stage.sidecar.watch.state.complete


@pytest.mark.parametrize(("cause", "complete"), [(RETENTION, True), ("corrupt", False)])
def test_a_gap_of_what_was_read(cause: str, complete: bool) -> None:
    """That retention took it since is no loss; any other cause is."""
    play = Play()
    play.say(route(1), route(2, canary="2", weight_bp=2000))
    play.say(*traffic(20, 2, ARMS, 4))
    play.tick()
    play.say(Gap(f"{WORKERS[0]:016x}", 1, 0, 19, cause), worker=1)
    play.tick()
    assert play.watch.state.complete is complete


class TopicBehind(ListFeed):
    """A topic that lost its beginning."""

    def __init__(self, skipped: Sequence[Skipped], deliveries: Sequence[list[Event]] = ()) -> None:
        super().__init__(deliveries)
        self.skipped = list(skipped)

    def read(self, max_events: int, wait_ms: int) -> Delivery:
        """First what is gone."""
        if self.skipped:
            return Delivery([], [], [self.skipped.pop()])
        return super().read(max_events, wait_ms)


def test_offsets_that_are_gone_make_a_tick_incomplete() -> None:
    """Which records stood there nobody knows, so no verdict rests on the window; it is no end of the log."""
    play = Play()
    play.feed.__class__ = TopicBehind
    play.feed.skipped = [Skipped(1, 5, 9)]  # type: ignore[attr-defined]
    play.say(route(1))
    while play.feed.skipped or play.feed.deliveries:  # type: ignore[attr-defined]
        play.runner.read()
    assert play.watch.tally.missing == ["partition 1 offsets 5..9"]
    play.tick()
    assert not play.watch.state.complete


def test_a_tick_whose_records_a_topic_lost_is_given_up() -> None:
    """A sidecar that adopts it does not wait for ever for what the topic said it has no more."""
    play = Play()
    play.feed.__class__ = TopicBehind
    play.feed.skipped = [Skipped(0, 0, 9)]  # type: ignore[attr-defined]
    stored = Stored(Tick(1, play.at_ns, {f"{WORKERS[0]:016x}-{1:08x}": (0, 7)}), None, ())
    fold(play.watch, play.runner, stored, 0)
    assert play.watch.state.tick == 1
    assert not play.watch.state.complete
