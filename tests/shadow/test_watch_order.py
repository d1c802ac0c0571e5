"""A tick is a set: in what order, chunks and frames its events are read changes nothing."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit.event import Control, Event, Gap, Heartbeat, ModelFacts, Prediction
from gateway.audit.frame import Caller, Run, RunTensor, encoder
from shadow.decide import Decision
from shadow.runner import Cuts, Runner
from shadow.state import Tick
from shadow.store import Store
from shadow.watch import Watch
from tests.gateway.audit.sim import Log, settle
from tests.shadow.play import CONTROL, SOURCES, TRUSTING, WORKERS, Arm, ListFeed, Numbers, Shelf, traffic
from tests.shadow.story import MODEL, SECOND_NS, Stage, labels, prediction, route

Sources = dict[int, list[Event]]
BAD = {"primary": (8000, Arm("1", 0.02)), "canary": (2000, Arm("2", 0.4, 0.2, 0.7))}


def a_log(seed: int) -> tuple[Sources, list[Cuts]]:
    """Three workers and control: traffic, labels of earlier and later predictions, gaps; and where ticks end."""
    rng = random.Random(seed)
    numbers = Numbers()
    found: Sources = {source: [] for source in (*WORKERS, CONTROL)}
    ends: list[dict[int, int]] = []

    def add(event: Event, source: int) -> str:
        made = numbers.draw(event, source)
        found[source].append(made)
        return made.id

    add(route(1), CONTROL)
    add(route(2, canary="2", weight_bp=2000), CONTROL)
    ids: list[str] = []
    for tick in range(4):
        for event in traffic(40, 2, BAD, rng.randrange(1 << 30), at_ns=(tick * 40 + 1) * SECOND_NS):
            unit = f"{rng.randrange(50):016x}" if rng.random() < 0.5 else None
            assert event.route is not None
            event.route = msgspec.structs.replace(
                event.route, unit_hash=unit, reason=rng.choice(["weight", "weight", "key"])
            )
            event.received_ns += rng.randrange(SECOND_NS)
            ids.append(add(event, rng.choice(WORKERS)))
            if rng.random() < 0.4:
                of = rng.choice([*ids, f"{WORKERS[0]:016x}-00000001-{rng.randrange(90):016x}"])
                value = rng.choice([0, 1, 1.0, True, "x", 0.5])
                given = (of, rng.choice([0, 0, 0, 1]), value)
                received_ns = rng.choice([1, *[(tick * 40 + 3) * SECOND_NS] * 7])
                model = rng.choice(["other", *[MODEL] * 7])
                add(labels(given, at_ns=received_ns, model=model), rng.choice(WORKERS))
        if tick == 1 and seed % 3 == 0:
            add(
                Gap(source=f"{WORKERS[0]:016x}", epoch=1, from_seq=1, to_seq=2, cause="ring_full"), WORKERS[1]
            )
        add(Heartbeat(at_ns=(tick * 40 + 9) * SECOND_NS), WORKERS[0])
        for version in ("1", "2", "2"):
            facts = ModelFacts(name=MODEL, version=version)
            add(Prediction(kind="aborted", model=facts, count=rng.choice([1, 2])), rng.choice(WORKERS))
        if tick == 2:
            add(route(3, canary="2", weight_bp=5000), CONTROL)
        ends.append({source: len(events) for source, events in found.items()})
    cuts, before = [], dict.fromkeys(found, 0)
    for end in ends:
        cuts.append({f"{s:016x}-00000001": (before[s], n) for s, n in end.items() if n > before[s]})
        before = end
    return found, cuts


def shuffled(found: Sources, rng: random.Random) -> list[list[Event]]:
    """Deliveries that keep each source's order and nothing else."""
    left = {source: list(events) for source, events in found.items()}
    deliveries: list[list[Event]] = []
    while any(left.values()):
        source = rng.choice([source for source, events in left.items() if events])
        count = rng.choice([1, 2, 7, 40, 1000])
        taken, left[source] = left[source][:count], left[source][count:]
        if deliveries and rng.random() < 0.3:
            deliveries[-1] += taken
        else:
            deliveries.append(taken)
    return deliveries


def fold(deliveries: list[list[Event]], cuts: list[Cuts]) -> tuple[bytes, list[Decision], list[object]]:
    """State, decisions and label join after all ticks."""
    store = Store()
    watch = Watch(Shelf(), store.join)
    watch.use(TRUSTING)
    runner = Runner(ListFeed(deliveries), watch, {}, SOURCES)
    decisions = []
    for number, cut in enumerate(cuts, 1):
        assert runner.read_to(cut, 0)
        assert runner.close() == cut
        decisions += watch.close(Tick(number, number * SECOND_NS, cut), runner.fate)
    joined = [
        row
        for table in ("served", "labels", "unserved")
        for row in store._db.execute(f"SELECT * FROM {table}")
    ]
    return msgspec.msgpack.encode(watch.state), decisions, joined


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), order=st.integers(0, 1 << 30))
def test_order_of_reading_does_not_matter(seed: int, order: int) -> None:
    """Other source order, other chunks, read ahead of the cut or not: byte-equal state, the same decisions."""
    found, cuts = a_log(seed)
    plain = fold([list(events) for events in found.values()], cuts)
    mixed = fold(shuffled(found, random.Random(order)), cuts)
    assert mixed == plain
    assert sum(msgspec.msgpack.decode(plain[0])["counts"].values()) >= 160


def test_the_log_of_these_tests_decides_something() -> None:
    """What order must not change is there: decisions, kept labels, errata, an incomplete tick."""
    outcomes: set[str] = set()
    causes: set[str] = set()
    for seed in range(4):
        found, cuts = a_log(seed)
        encoded, decisions, _ = fold(shuffled(found, random.Random(1)), cuts)
        state = msgspec.msgpack.decode(encoded)
        outcomes |= set(state["labels"])
        causes |= {decision.cause for decision in decisions}
        assert state["incomplete_ticks"] == (seed % 3 == 0)
        assert state["accuracy"]["flights"]["2"]
    assert {"kept", "erratum", "duplicate", "wrong_row", "wrong_type", "late"} <= outcomes
    assert {"early", "wrong_model"} <= outcomes
    assert causes


def test_source_order_between_open_ticks(tmp_path: Path) -> None:
    """The spool's turn: readers that begin with another source come to the same state."""
    stage = Stage(Log(tmp_path / "state"), tmp_path)
    stage.say(route(1), route(2, canary="2", weight_bp=2000))
    for index, event in enumerate(traffic(80, 2, BAD, 5)):
        stage.say(event, worker=index % 2)
    states = []
    for turn in range(3):
        store = Store()
        watch = Watch(Shelf(), store.join)
        feed = stage.feed({})
        feed._turn = turn  # type: ignore[attr-defined]
        runner = Runner(feed, watch, {}, SOURCES)
        while runner.read(max_events=1 + 20 * turn):
            pass
        decisions = watch.close(Tick(1, SECOND_NS, runner.close()), runner.fate)
        states.append((msgspec.msgpack.encode(watch.state), [each.cause for each in decisions]))
    assert states[0] == states[1] == states[2]


def run_payload(events: list[Prediction]) -> bytes:
    """A run frame of requests to one version."""
    raw = msgspec.msgpack.Encoder()
    tensors = [event.outputs[0] for event in events]
    run = Run(
        model=msgspec.Raw(raw.encode(events[0].model)),
        batch_id=1,
        cut="turn",
        infer_ns=1,
        rows=[event.rows for event in events],
        received_ns=[event.received_ns for event in events],
        done_ns=[event.done_ns for event in events],
        route=[msgspec.Raw(raw.encode(event.route)) for event in events],
        unit_hash=[None],
        caller=[msgspec.Raw(raw.encode(Caller("/x", "oip-json", None)))],
        stages=[[1]] * 5,
        inputs=[],
        outputs=[
            RunTensor("probabilities", "FP32", (2,), b"".join(tensor.data or b"" for tensor in tensors))
        ],
    )
    return encoder.encode(run)


def test_recut_batches_change_nothing(tmp_path: Path) -> None:
    """The same requests in frames of one, of seven and of all: equal state."""
    requests = [
        prediction(2, name, bp, version, scores=[0.2 + 0.01 * (i % 50)] * (1 + i % 3), at_ns=i + 1)
        for i in range(60)
        for name, bp, version in [("canary", 2000, "2") if i // 20 == 1 else ("primary", 8000, "1")]
    ]
    by_version = [requests[:20], requests[20:40], requests[40:]]
    states = []
    for size in (1, 7, 20):
        stage = Stage(Log(tmp_path / f"state{size}"), tmp_path)
        stage.say(route(1), route(2, canary="2", weight_bp=2000))
        for batch in by_version:
            for at in range(0, len(batch), size):
                part = batch[at : at + size]
                assert stage.workers[0].append_run(run_payload(part), len(part)) is not None
        settle(stage.recorder)
        store = Store()
        watch = Watch(Shelf(), store.join)
        runner = Runner(stage.feed({}), watch, {}, SOURCES)
        while runner.read():
            pass
        watch.close(Tick(1, SECOND_NS, runner.close()), runner.fate)
        assert watch.state.counts["done"] == 60
        assert watch.state.rollouts.active[0].requests == 20
        states.append(msgspec.msgpack.encode(watch.state))
    assert states[0] == states[1] == states[2]


def test_control_before_or_after_is_known_to_be_lacking() -> None:
    """A prediction of a revision whose control event was not read yet holds the cut back; once read it does not."""
    store = Store()
    watch = Watch(Shelf(), store.join)
    numbers = Numbers()
    watch.take(numbers.draw(prediction(2, "primary", 10_000, "1"), WORKERS[0]))
    assert watch.lacks_routes
    first = numbers.draw(route(2), CONTROL)
    assert isinstance(first, Control)
    watch.take(first)
    assert not watch.lacks_routes
