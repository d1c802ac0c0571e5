"""A sidecar that dies at any point: the next one goes on as if it had never died."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.audit.event import Heartbeat
from gateway.errors import LogIncomplete
from gateway.settings import Policy
from shadow.state import Settings
from shadow.store import Store
from tests.gateway.audit.sim import Killed, Log
from tests.shadow.play import Arm, traffic
from tests.shadow.story import MODEL, Stage, route

ARMS = {"primary": (8000, Arm("1", 0.01)), "canary": (2000, Arm("2", 0.2))}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A rollout of version 2 has begun; nothing was read."""
    stage = Stage(Log(tmp_path / "state"), tmp_path / "models")
    stage.sidecar.adopt([])
    stage.say(route(1), route(2, canary="2", weight_bp=2000))
    return stage


def say_some(stage: Stage, seed: int) -> None:
    """A tick's worth of traffic over both workers."""
    for index, event in enumerate(traffic(100, 2, ARMS, seed)):
        stage.workers[index % 2].append_events([event])
    for writer in (stage.control, *stage.workers):
        writer.append_events([Heartbeat(at_ns=time.time_ns())])
    stage.say()


def killed(*_: Any, **__: Any) -> Any:
    """The end of a process."""
    raise Killed


def before_the_verdict(stage: Stage) -> None:
    """Nothing of the tick was appended."""
    stage.sidecar._log = killed  # type: ignore[method-assign]


def before_the_commit(stage: Stage) -> None:
    """The verdict is on disk."""
    stage.sidecar._parts.store.commit = killed  # type: ignore[method-assign]


def before_the_sync(stage: Stage) -> None:
    """The verdict is in the ring and not yet known to be on disk."""
    writer = stage.sidecar._writer
    append: Callable[..., Any] = writer.append_events

    def appended(events: Any) -> None:
        append(events)
        raise Killed

    writer.append_events = appended  # type: ignore[method-assign,assignment]


DEATHS = [before_the_verdict, before_the_sync, before_the_commit]


def hold(stage: Stage) -> None:
    """What the log says: every tick and decision once, and a fold of it is the state that the sidecar has."""
    verdicts = stage.verdicts()
    ticks = [event.body["tick"] for event in verdicts if event.kind == "tick"]
    assert sorted(ticks) == list(range(1, len(ticks) + 1))
    causes = Counter(
        (event.body["rollout"], event.body["cause"]) for event in verdicts if event.kind == "decision"
    )
    assert set(causes.values()) <= {1}
    replayed = stage.replayed()
    assert [one.differs for one in replayed.decisions] == [None] * len(causes)
    mine = msgspec.msgpack.encode(stage.sidecar.watch.state)
    assert msgspec.msgpack.encode(replayed.state) == mine
    committed = Store(stage.log.state_dir / "sidecar" / "state.db")
    assert msgspec.msgpack.encode(committed.saved.state) == mine
    assert committed.saved.cut == stage.sidecar.runner.cut
    committed.close()


@pytest.mark.parametrize("death", DEATHS)
def test_a_death_at_every_tick(stage: Stage, death: Callable[[Stage], None]) -> None:
    """It dies in each of its ticks, its successor lives through one: ticks 1, 2, 3... once each, the same state."""
    for seed in range(5):
        say_some(stage, 2 * seed)
        death(stage)
        with pytest.raises(Killed):
            stage.tick()
        say_some(stage, 2 * seed + 1)
        stage.die()
        stage.succeed()
        stage.tick()
    total = sum(stage.sidecar.watch.state.counts.values())
    assert total == 1000
    assert stage.sidecar.watch.state.tick == (5 if death is before_the_verdict else 10)
    assert any(event.kind == "decision" for event in stage.verdicts())
    hold(stage)


def test_many_ticks_are_adopted_by_an_empty_database(stage: Stage) -> None:
    """The database is lost: everything is folded again from the log."""
    for seed in range(4):
        say_some(stage, seed)
        stage.tick()
    before = msgspec.msgpack.encode(stage.sidecar.watch.state)
    stage.die()
    (stage.log.state_dir / "sidecar" / "state.db").unlink()
    stage.succeed()
    assert msgspec.msgpack.encode(stage.sidecar.watch.state) == before
    say_some(stage, 9)
    stage.tick()
    hold(stage)


def test_a_death_between_adopted_ticks(stage: Stage) -> None:
    """While it adopts several ticks it dies after the first commit: what was read ahead is not counted twice."""
    home = stage.log.state_dir / "sidecar" / "state.db"
    say_some(stage, 0)
    stage.tick()
    old = home.read_bytes()
    for seed in range(1, 4):
        say_some(stage, seed)
        stage.tick()
    stage.die()
    home.write_bytes(old)
    commit, commits = Store.commit, []

    def once(self: Store) -> None:
        commits.append(1)
        if len(commits) > 1:
            raise Killed
        commit(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "commit", once)
        with pytest.raises(Killed):
            stage.succeed()
    stage.die()
    stage.succeed()
    assert sum(stage.sidecar.watch.state.counts.values()) == 400
    say_some(stage, 9)
    stage.tick()
    hold(stage)


def test_dead_between_commit_and_act(stage: Stage) -> None:
    """A rollback that was decided and not carried out stands in the database; the successor carries it on, once it
    has a tick of its own to show."""
    for seed in range(4):
        say_some(stage, seed)
        stage.tick()
    (pending,) = stage.sidecar._saved.pending
    assert (pending.version, pending.model) == ("2", MODEL)
    assert stage.actor.rolled_back == []
    stage.die()
    sidecar = stage.succeed()
    sidecar._act(0.0)
    assert stage.actor.rolled_back == [], "no evidence that is young"
    say_some(stage, 5)
    stage.tick()
    sidecar._act(1.0)
    assert stage.actor.rolled_back == [pending]
    sidecar._act(100.0)
    assert stage.actor.rolled_back == [pending]
    hold(stage)


def test_new_settings_hold_from_the_next_tick_on(stage: Stage) -> None:
    """A restart with another policy: adopted ticks by the old one, later ones by the new, in the log with the first."""
    say_some(stage, 0)
    before_the_commit(stage)
    with pytest.raises(Killed):
        stage.tick()
    stage.die()
    stage.settings = Settings(policies={MODEL: Policy(on_harm="alert")})
    stage.succeed()
    for seed in range(1, 5):
        say_some(stage, seed)
        stage.tick()
    told = [event.body["tick"] for event in stage.verdicts() if "settings" in event.body]
    assert told == [1, 2]
    actions = {
        event.body["cause"]: event.body["action"] for event in stage.verdicts() if event.kind == "decision"
    }
    assert actions["harm.failed"] == "alert"
    hold(stage)


def test_a_log_without_a_ticks_records_is_not_replayed(stage: Stage) -> None:
    """Older segments of a worker are gone: said so, instead of a fold that says that nothing happened."""
    for seed in range(3):
        say_some(stage, seed)
        stage.tick()
    epoch = next((stage.log.spool / f"{stage.workers[0].source.source:016x}").glob("[0-9]*"))
    (first,) = sorted(epoch.glob("*.log"))[:1]
    content = first.read_bytes()
    assert content
    first.unlink()
    for event in traffic(10, 2, ARMS, 7):
        stage.workers[0].append_events([event])
    with pytest.raises(LogIncomplete, match="tick 1"):
        stage.replayed()
