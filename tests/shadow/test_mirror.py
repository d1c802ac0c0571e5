"""The mirror on a real log: what it answers, what it skips and why, and in what order it may read things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.audit.event import Control, Event, Model, ModelFacts, Shadow, Tensor
from gateway.audit.feed import Delivery, Positions
from gateway.audit.sampling import in_sample
from loaders.bundle import tree_sha256
from loaders.errors import ModelInvalid
from loaders.session import load
from shadow import mirror as mirror_module
from shadow.mirror import HOLD_S, Mirror, Parts, Stopped, first_place
from shadow.replicas import Replicas
from shadow.resume import Place, Saver, answered_since
from shadow.routes import RouteBook
from tests.e2e.onnx_models import linear_weights, write_linear, write_two_outputs
from tests.gateway.audit.sim import GATEWAY_ID, settle
from tests.shadow.mirrored import Stage, array_of, prediction, route_event, saved, tensor


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Versions 1 and 2 of X[N,4] -> Y[N,3], the second of another scale."""
    write_linear(tmp_path / "models", version="1", scale=0.25)
    write_linear(tmp_path / "models", version="2", scale=0.5)
    yield Stage(tmp_path / "state", tmp_path / "models")


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Inputs of `count` rows."""
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def codes(answers: list[Shadow]) -> list[tuple[str, str | None]]:
    """What came of each."""
    return [(answer.kind, answer.code) for answer in answers]


def test_a_shadow_answers_what_was_logged(stage: Stage):
    """Each request has one answer: the version's own on the logged rows, whatever ran with it."""
    asked = {}
    stage.route(1, "2")
    for i in range(40):
        values = rows(1 + i % 3, i)
        asked[stage.predict(values)] = values
    answers = stage.mirrored(stage.mirror())
    assert sorted(answer.derived_from for answer in answers) == sorted(asked)
    session = load(stage.models, "linear", "2")
    for answer in answers:
        assert (answer.kind, answer.version, answer.run) == ("done", "2", "live")
        (output,) = answer.outputs
        assert (output.name, output.datatype, output.shape[1:]) == ("Y", "FP32", (3,))
        values = asked[answer.derived_from]
        np.testing.assert_allclose(array_of(output), session.run({"X": values})[0], rtol=1e-6)
        np.testing.assert_allclose(array_of(output), values @ linear_weights(0.5), rtol=1e-5)


def test_several_outputs_and_several_shadows(tmp_path: Path):
    """Every shadow answers, with all of its outputs in the types that it declares."""
    for version in ("1", "2", "3"):
        write_two_outputs(tmp_path / "models", "twin", version)
    stage = Stage(tmp_path / "state", tmp_path / "models")
    stage.route(1, "2", "3", model="twin")
    stage.predict(rows(2), model="twin")
    answers = stage.mirrored(stage.mirror())
    assert sorted(answer.version for answer in answers) == ["2", "3"]
    for answer in answers:
        assert [(t.name, t.datatype, t.shape) for t in answer.outputs] == [
            ("label", "INT64", (2,)),
            ("scores", "FP32", (2, 3)),
        ]


@pytest.mark.parametrize(
    "facts",
    [
        {"version": "2"},
        {"unit": None},
        {"kind": "failed"},
        {"kind": "cancelled"},
        {"revision": 2},
        {"model": "other"},
    ],
)
def test_what_is_not_to_be_mirrored_is_passed_over(stage: Stage, facts: dict[str, Any]):
    """Answered by the shadow itself, pinned, not done, a revision or model without a shadow: no event at all."""
    stage.route(1, "2")
    stage.route(2)
    stage.route(1, model="other")
    stage.predict(rows(1), **facts)
    assert stage.mirrored(stage.mirror()) == []


@pytest.mark.parametrize(
    ("facts", "code", "says"),
    [
        (
            {"capture": "hash", "inputs": [Tensor("X", "FP32", (1, 4), None, "ab" * 32)]},
            "hash",
            "capture_max_bytes",
        ),
        ({"redacted": [{"input": "X"}]}, "redacted", "redacted"),
        ({"inputs": [tensor("Z", rows(1))]}, "signature", "inputs Z; version 2 takes X"),
        (
            {"inputs": [tensor("X", rows(1), np.float64)]},
            "signature",
            r"FP64 [1, 4]; version 2 takes FP32 [-1, 4]",
        ),
        (
            {"inputs": [tensor("X", [[1, 2]])]},
            "signature",
            r"version 1 was given FP32 [1, 2]; version 2 takes FP32 [-1, 4]",
        ),
    ],
)
def test_what_cannot_be_answered_says_why(stage: Stage, facts: dict[str, Any], code: str, says: str):
    """One skipped event with a code and a sentence; the neighbour is answered."""
    stage.route(1, "2")
    stage.predict(rows(1))
    skipped_id = stage.predict(rows(1), **facts)
    answers = {answer.derived_from: answer for answer in stage.mirrored(stage.mirror())}
    assert len(answers) == 2
    skipped = answers.pop(skipped_id)
    assert (skipped.kind, skipped.code) == ("skipped", code)
    assert says in (skipped.reason or "")
    assert codes(list(answers.values())) == [("done", None)]


class Touchy:
    """A session that takes no row above 100, and counts its runs."""

    def __init__(self, models: Path) -> None:
        self.real = load(models, "linear", "2")
        self.rows: list[int] = []
        self.signature, self.bundle, self.batchable = (
            self.real.signature,
            self.real.bundle,
            self.real.batchable,
        )
        self.inline_allowed, self.load_ms = True, 0

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        """Run the real one, or raise."""
        self.rows.append(len(feeds["X"]))
        if (feeds["X"] > 100).any():
            raise RuntimeError("too much\nat a place that nobody needs to know")
        return self.real.run(feeds)

    def close(self) -> None:
        """Nothing to let go of."""


def test_one_that_cannot_be_answered_fails_alone(stage: Stage):
    """Rows run together; when the run raises each request runs for itself."""
    touchy = Touchy(stage.models)
    stage.route(1, "2")
    good = [stage.predict(rows(1, i)) for i in range(5)]
    bad = stage.predict(rows(1) + 1000)
    answers = stage.mirrored(stage.mirror(load=lambda *_: touchy))
    assert {a.derived_from: (a.kind, a.code, a.reason) for a in answers} == {
        **dict.fromkeys(good, ("done", None, None)),
        bad: ("failed", "inference_failed", "too much"),
    }
    assert touchy.rows == [6, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("batchable", "runs"), [(True, [63, 7, 80]), (False, [1, 30, 32, 7, 80])])
def test_rows_run_together_where_the_loader_allows_it(stage: Stage, batchable: bool, runs: list[int]):
    """Up to 64 rows of requests with equal rows; a larger request alone, others one by one."""
    touchy = Touchy(stage.models)
    touchy.batchable = batchable
    stage.route(1, "2")
    for count in (1, 30, 32, 7, 80):
        stage.predict(rows(count))
    answers = stage.mirrored(stage.mirror(load=lambda *_: touchy))
    assert codes(answers) == [("done", None)] * 5
    assert touchy.rows == runs


def test_large_answers_are_logged_by_hash(stage: Stage):
    """As the gateway's own are."""
    stage.route(1, "2")
    stage.predict(rows(8))
    (answer,) = stage.mirrored(stage.mirror(capture=64))
    assert answer.outputs[0].data is None
    assert len(answer.outputs[0].sha256 or "") == 64


def test_a_prediction_may_be_read_before_its_route(stage: Stage):
    """It waits for the control event of its revision, and so does the place in the log."""
    stage.route(1)
    mirror = stage.mirror()
    assert stage.mirrored(mirror) == []
    stage.predict(rows(1), revision=2)
    assert stage.mirrored(mirror) == []
    before = mirror._place.feed
    stage.clock.now_s += HOLD_S - 1
    assert mirror.step()
    assert mirror._place.feed == before
    stage.route(2, "2")
    assert codes(stage.mirrored(mirror)) == [("done", None)]
    assert mirror._place.feed != before


def test_a_revision_that_never_comes_is_treated_by_the_newest(stage: Stage, caplog: pytest.LogCaptureFixture):
    """After five seconds, with one warning however many requests it was."""
    stage.route(1, "2")
    mirror = stage.mirror()
    for i in range(3):
        stage.predict(rows(1, i), revision=7)
    assert stage.mirrored(mirror) == []
    stage.clock.now_s += HOLD_S
    with caplog.at_level("WARNING"):
        assert len(stage.mirrored(mirror)) == 3
    assert [record.getMessage() for record in caplog.records].count("revision_not_in_log") == 1


def test_a_version_that_does_not_load_is_told_and_tried_again(stage: Stage, caplog: pytest.LogCaptureFixture):
    """Each request says not_loaded; the log says it once; the next change of the route tries again."""
    tried = []

    def load_version(model: str, version: str) -> Any:
        tried.append(version)
        if len(tried) == 1:
            raise ModelInvalid("linear/2: no such operator")
        return load(stage.models, model, version)

    stage.route(1, "2")
    mirror = stage.mirror(load=load_version)
    for i in range(3):
        stage.predict(rows(1, i))
    with caplog.at_level("WARNING"):
        assert codes(stage.mirrored(mirror)) == [("skipped", "not_loaded")] * 3
    assert [record.getMessage() for record in caplog.records].count("shadow_not_loaded") == 1
    assert tried == ["2"]
    stage.route(2, "2")
    stage.predict(rows(1), revision=2)
    assert codes(stage.mirrored(mirror))[3:] == [("done", None)]


def test_other_files_than_the_gateway_runs_are_not_compared(stage: Stage):
    """The workers logged what they loaded; a directory that was written to since is no longer that version."""
    stage.route(1, "2")
    directory = stage.models / "linear" / "2"
    mirror = stage.mirror()
    for i, tree in enumerate(["cd" * 32, tree_sha256(directory)]):
        loaded = Model(kind="loaded", model=ModelFacts("linear", "2", tree), at_ns=1)
        assert stage.worker.append_events([loaded]) is not None
        stage.predict(rows(1, i))
        stage.mirrored(mirror)
    first, second = stage.answers()
    assert codes([first, second]) == [("skipped", "bundle_changed"), ("done", None)]
    assert "the gateway runs files cdcdcdcdcdcd" in (first.reason or "")


def test_a_version_is_let_go_when_no_route_names_it(stage: Stage):
    """Memory is held for shadows that there are."""
    stage.route(1, "2")
    stage.predict(rows(1))
    mirror = stage.mirror()
    stage.mirrored(mirror)
    assert list(mirror._replicas._sessions) == [("linear", "2")]
    stage.route(2)
    stage.mirrored(mirror)
    assert mirror._replicas._sessions == {}


def test_it_waits_when_the_ring_is_full(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """More answers than the ring takes: none is lost, since nothing here is on the request path."""
    waits = []

    def drain(_: float) -> None:
        waits.append(1)
        stage.recorder.step()

    stage.route(1, "2")
    asked = [stage.predict(rows(16, i)) for i in range(300)]
    stage.settle()
    mirror = stage.mirror(ring_bytes=65536)
    monkeypatch.setattr(mirror_module.time, "sleep", drain)
    assert mirror.step()
    monkeypatch.undo()
    assert waits
    stage.settle()
    assert Counter(a.derived_from for a in stage.answers()) == Counter(asked)


def test_a_stop_ends_between_two_runs(stage: Stage):
    """What is left is not counted as done: the place stays, and the next mirror goes on."""
    stage.route(1, "2")
    stage.predict(rows(1))
    stage.settle()
    mirror = stage.mirror()
    stage.stop.set()
    with pytest.raises(Stopped):
        mirror.step()
    mirror.finish(whole=False)
    assert not (stage.log.state_dir / "mirror" / "positions.json").exists()


def test_the_place_is_saved_behind_what_is_on_disk(stage: Stage):
    """Not before the answers are synced, and not more than once a second."""
    stage.route(1, "2")
    stage.predict(rows(1))
    stage.settle()
    mirror = stage.mirror()
    path = stage.log.state_dir / "mirror" / "positions.json"
    mirror.step()
    assert not path.exists()
    stage.settle()
    mirror.step()
    first = saved(stage)
    assert list(first["outputs"].values()) == [2]
    stage.predict(rows(1))
    stage.mirrored(mirror)
    mirror.step()
    assert saved(stage) == first
    stage.clock.now_s += 1.0
    mirror.step()
    stage.settle()
    mirror.step()
    assert list(saved(stage)["outputs"].values()) == [3]


def test_a_mirror_that_nothing_needs_any_more_leaves_no_place(stage: Stage):
    """No route has a shadow when it ends: the next one begins at the end of the log, not where this one stood."""
    stage.route(1, "2")
    stage.predict(rows(1))
    mirror = stage.mirror()
    stage.mirrored(mirror)
    mirror.step()
    assert saved(stage)
    stage.route(2)
    stage.mirrored(mirror)
    mirror.finish()
    assert not (stage.log.state_dir / "mirror" / "positions.json").exists()


def test_a_first_start_begins_where_the_shadow_appeared(stage: Stage):
    """What was answered between the change that asked for a shadow and the mirror's start is mirrored, no more."""
    second_ns = 1_000_000_000
    stage.route(1)
    stage.control.append_events([route_event(2, "2", at_ns=5 * second_ns)])
    stage.predict(rows(1), revision=1, received_ns=second_ns)
    # An earlier trial of the same version, long over.
    stage.control.append_events(
        [route_event(3, at_ns=6 * second_ns), route_event(4, "2", at_ns=8 * second_ns)]
    )
    stage.predict(rows(1), revision=2, received_ns=5 * second_ns)
    asked = [stage.predict(rows(1), revision=4, received_ns=9 * second_ns)]
    stage.settle()
    mirror = stage.mirror(place=first_place(stage.log.spool, GATEWAY_ID, topic=False))
    assert [answer.derived_from for answer in stage.mirrored(mirror)] == asked
    asked.append(stage.predict(rows(1), revision=4, received_ns=10 * second_ns))
    assert [answer.derived_from for answer in stage.mirrored(mirror)] == asked


def test_what_was_answered_before_is_known_from_its_own_epochs(stage: Stage):
    """Beyond the saved numbers; of epochs that ended before them nothing is read."""
    stage.route(1, "2")
    asked = [stage.predict(rows(1, i)) for i in range(3)]
    mirror = stage.mirror()
    stage.mirrored(mirror)
    own = frozenset([mirror._writer.source.source])
    key = f"{mirror._writer.source.source:016x}-{mirror._writer.source.epoch:08x}"
    every = {(event_id, "2", "live") for event_id in asked}
    assert answered_since(stage.log.spool, own, {}) == every
    assert answered_since(stage.log.spool, own, {key: 3}) == every - {
        (asked[0], "2", "live"),
        (asked[1], "2", "live"),
    }
    later = f"{mirror._writer.source.source:016x}-{mirror._writer.source.epoch + 1:08x}"
    assert answered_since(stage.log.spool, own, {later: 0}) == set()


class ListFeed:
    """A feed of given events: what the mirror may use of any."""

    def __init__(self, batches: list[list[Event]]) -> None:
        self.batches = batches
        self.positions: Positions = {}
        self.closed = False

    def read(self, max_events: int, wait_ms: int) -> Delivery:
        """The next batch."""
        self.positions = {"read": self.positions.get("read", 0) + 1}
        return Delivery(self.batches.pop(0) if self.batches else [], [])

    def close(self) -> None:
        """Remember it."""
        self.closed = True


def test_any_feed_will_do_and_other_gateways_are_passed_over(stage: Stage):
    """A topic holds many gateways: routes and predictions of others are not this mirror's; nor is its own past."""
    worker_id = stage.worker.event_id
    control_id = stage.control.event_id
    foreign_route, forged, own_route = route_event(1, "2"), route_event(9), route_event(1, "2")
    foreign_route.gateway_id, foreign_route.id = "f" * 16, "f" * 16 + control_id(1)[16:]
    # One that only says that it is ours, and would end all shadows.
    forged.id = "f" * 16 + control_id(2)[16:]
    own_route.id = control_id(1)
    events: list[Event] = [foreign_route, forged, own_route]
    for event_id, received_ns in [
        (worker_id(1), 50),
        (worker_id(2), 200),
        ("f" * 16 + worker_id(3)[16:], 200),
    ]:
        events.append(prediction(rows(1), id=event_id, received_ns=received_ns))
    feed = ListFeed([events[3:], events[:3]])
    writer = stage.log.owner("mirror", 1 << 20)
    replicas = Replicas.of_repository(stage.models, ["CPUExecutionProvider"], 65536)
    parts = Parts(feed, writer, replicas, Saver(stage.log.state_dir / "positions.json", writer, {}))
    mirror = Mirror(parts, GATEWAY_ID, Place(since_ns=100), set(), stage.stop, stage.clock)
    while mirror.step():
        pass
    settle(stage.recorder)
    mirror.finish()
    settle(stage.recorder)
    assert [answer.derived_from for answer in stage.answers()] == [worker_id(2)]
    assert feed.closed


def test_a_sample_is_a_share_of_every_variant():
    """Deterministic, nested as it grows, and the same within the units of any bucket range."""
    units = range(20_000)
    tenth = {unit for unit in units if in_sample(unit, 1000)}
    assert tenth <= {unit for unit in units if in_sample(unit, 1001)}
    assert all(in_sample(unit, 10_000) for unit in units)
    assert not any(in_sample(unit, 0) for unit in units)
    for canary in (units, [u for u in units if u % 10_000 < 500]):
        assert len(tenth & set(canary)) / len(canary) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    "after",
    [
        {"variants": []},
        {"model": "m", "revision": 1, "variants": [1]},
        {"model": "m", "revision": 1, "variants": [{}]},
        {
            "model": "m",
            "revision": 1,
            "variants": [{"role": "shadow", "sample_bp": "x", "version": "1", "name": "a"}],
        },
        {"model": ["m"], "revision": "x", "variants": []},
        {
            "model": "m",
            "revision": float("inf"),
            "variants": [{"role": "primary", "version": "1", "name": "a"}],
        },
        {"variants": 7},
        {"m": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["route", "routes"])
def test_a_document_that_is_none(after: Any, kind: str):
    """Whatever a control event holds, a book learns nothing from it and does not break."""
    book = RouteBook()
    content = {"m": after} if kind == "routes" else after
    assert book.learn(Control(kind=kind, gateway_id=GATEWAY_ID, after=content)) == set()
    assert book.wanted == set()


def test_a_book_keeps_the_newest_revisions():
    """Bounded, from whole documents of any kind, and from control's list of all routes."""
    book = RouteBook()
    for revision in range(1, 100):
        assert book.learn(route_event(revision, "2")) == {"linear"}
    assert len(book.shadows["linear"]) == 64
    assert book.learn(route_event(99, "2")) == set()
    every = route_event(3, "5", model="other", sample_bp=20)
    every.kind, every.after = "routes", {"other": every.after}
    assert book.learn(every) == {"other"}
    assert book.wanted == {("linear", "2"), ("other", "5")}
    assert book.knows(prediction(rows(1), revision=3))
    assert not book.knows(prediction(rows(1), revision=100))


def test_the_log_adds_up_after_a_mirror(stage: Stage):
    """Its epoch ends like any other's."""
    stage.route(1, "2")
    stage.predict(rows(1))
    mirror = stage.mirror()
    stage.mirrored(mirror)
    mirror.finish()
    stage.worker.close()
    stage.control.close()
    stage.settle()
    assert stage.log.verify().ok
