"""A graph that ends its process: the request is answered as crashed, and all other shadows go on."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gateway.audit.event import Prediction, Shadow
from gateway.audit.writer import Writer
from shadow.resume import write_place
from shadow.running import CRASHES_MAX, Run, Running
from tests.e2e.onnx_models import write_linear
from tests.gateway.audit.sim import forget_owner, until
from tests.shadow.mirrored import Stage, prediction, route_event, tensor
from tests.shadow.test_mirror_kill import MirroredLog

LOWEST = -(2**63)


def write_quotient(root: Path, version: str, operator: str) -> None:
    """X[N,1], Z[N,1] -> y[N,1], integers. Of the lowest one by -1 the processor makes no quotient but a signal."""
    facts = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", 1]) for name in ("X", "Z", "y")]
    graph = helper.make_graph(
        [helper.make_node(operator, ["X", "Z"], ["y"])], "quotient", facts[:2], facts[2:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    directory = root / "quotient" / version
    directory.mkdir(parents=True)
    onnx.save(model, directory / "model.onnx")


def quotient(x: int, z: int) -> Prediction:
    """A request to it."""
    inputs = [tensor("X", [[x]], np.int64), tensor("Z", [[z]], np.int64)]
    return prediction(None, inputs=inputs, model="quotient")


class Crashing:
    """A log, a worker and control in this process; recorder and mirror in their own."""

    def __init__(self, log: MirroredLog) -> None:
        self.log = log
        self.recorder = log.real_recorder()
        self.worker: Writer = log.owner("worker", 1 << 20)
        self.control: Writer = log.owner("control")
        self.deaths: list[int] = []

    def say(self, *events: Any) -> list[str]:
        """Predictions, all in one frame: the mirror runs them together."""
        first_seq = self.worker.append_events(events)
        assert first_seq is not None
        return [self.worker.event_id(first_seq + i) for i in range(len(events))]

    def route(self, revision: int) -> None:
        """Versions 2 of both models shadow all there is."""
        events = [route_event(revision, "2", model=model) for model in ("quotient", "linear")]
        assert self.control.append_events(events) is not None

    def mirrored(self, wanted: int) -> list[Shadow]:
        """Start mirrors, as the supervisor does, until so many requests are answered and one has ended as told."""
        while True:
            child = self.log.child("-m", "shadow.mirror")
            until(lambda child=child: child.poll() is not None or self._answered() >= wanted, 60)
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                assert child.wait(20) == 0, self.log.output(child)
                return self.log.answers()
            self.deaths.append(child.returncode)
            assert len(self.deaths) < 20, self.log.output(child)

    def _answered(self) -> int:
        return len({answer.derived_from for answer in self.log.answers()})


@pytest.fixture
def crashing(tmp_path: Path) -> Iterator[Crashing]:
    """Version 1 of quotient subtracts, version 2 divides."""
    for version, operator in (("1", "Sub"), ("2", "Div")):
        write_quotient(tmp_path / "models", version, operator)
        write_linear(tmp_path / "models", version=version)
    made = Crashing(MirroredLog(tmp_path / "state", tmp_path / "models"))
    yield made
    made.log.end_children()
    for writer in (made.worker, made.control):
        forget_owner(writer)


def told(answers: list[Shadow]) -> Counter[tuple[str, str | None]]:
    """What came of requests."""
    return Counter((answer.kind, answer.code) for answer in answers)


def test_a_request_that_kills_the_mirror_is_run_no_more(crashing: Crashing) -> None:
    """It dies of it with others, then of it alone; then each has its answer, once, of both models."""
    crashing.route(1)
    before = crashing.say(*(quotient(7, 2) for _ in range(10)), prediction(np.ones((1, 4))))
    (poison,) = crashing.say(quotient(LOWEST, -1))
    after = crashing.say(*(quotient(9, 3) for _ in range(10)), prediction(np.ones((1, 4))))
    answers = crashing.mirrored(len(before) + len(after) + 1)
    assert told(answers) == {("done", None): 22, ("failed", "crashed"): 1}
    assert Counter(answer.derived_from for answer in answers) == Counter([*before, poison, *after])
    assert next(answer for answer in answers if answer.code).derived_from == poison
    assert len(crashing.deaths) == 2
    assert {-signal.SIGFPE, -signal.SIGSEGV} & set(crashing.deaths)


def test_a_version_that_kills_mirrors_is_left_out_until_its_route_changes(crashing: Crashing) -> None:
    """After three deaths it is skipped; what it is asked under the next revision it is asked again."""
    crashing.route(1)
    crashing.say(quotient(LOWEST, -1), quotient(7, 2))
    crashing.say(quotient(LOWEST, -1), quotient(9, 2))
    answers = crashing.mirrored(4)
    assert len(crashing.deaths) == CRASHES_MAX
    assert told(answers)["failed", "crashed"] == 1
    assert told(answers)["skipped", "crashed"] >= 1, "of the second, and of what was with it"
    (sound,) = crashing.say(prediction(np.ones((1, 4))))
    assert {a.kind for a in crashing.mirrored(5) if a.derived_from == sound} == {"done"}
    crashing.route(2)
    (again,) = crashing.say(sent_by(quotient(8, 2), 2))
    (answer,) = [a for a in crashing.mirrored(6) if a.derived_from == again]
    assert (answer.kind, answer.code) == ("done", None)
    assert len(crashing.deaths) == CRASHES_MAX


def sent_by(event: Prediction, revision: int) -> Prediction:
    """The same request, sent by a later revision."""
    assert event.route is not None
    event.route = type(event.route)(
        revision, 1, "primary", "primary", 10_000, "weight", event.route.unit_hash
    )
    return event


def newest(_model: str) -> int:
    """The revision of every route."""
    return 1


def die_in(home: Path, ids: list[str], fault: bytes = b"", revision: int = 1) -> None:
    """A mirror died while these ran."""
    content = msgspec.json.encode(Run("m", "2", revision, ids))
    (home / "running").write_bytes(f"{len(content):08x}".encode() + content)
    (home / "fault").write_bytes(fault)


def died_in(home: Path, ids: list[str], fault: bytes = b"") -> Running:
    """The next mirror's view of it."""
    die_in(home, ids, fault)
    return Running(home, newest)


def test_a_kill_from_outside_is_no_crash(tmp_path: Path) -> None:
    """Nothing was said of a signal: run once more by itself; there a second time it is the request's doing."""
    running = died_in(tmp_path, ["a"])
    assert (running.is_alone(("a", "m", "2")), running.has_crashed(("a", "m", "2"))) == (True, False)
    running.close()
    running = died_in(tmp_path, ["a"])
    assert running.has_crashed(("a", "m", "2"))
    assert not running.has_crashed(("a", "m", "3"))
    assert not running.is_out("m", "2")
    running.close()


def test_who_came_to_an_end_is_no_suspect(tmp_path: Path) -> None:
    """Killed in the same load twice, with a whole one between: from outside both times."""
    running = died_in(tmp_path, [""])
    with running.of("m", "2", [""]):
        pass
    running.close()
    running = died_in(tmp_path, [""])
    assert not running.has_crashed(("", "m", "2"))
    running.close()


@pytest.mark.parametrize("ids", [["a"], ["a", "b"], [""]])
def test_crashes_are_counted_while_the_route_is_the_same(tmp_path: Path, ids: list[str]) -> None:
    """With others, alone, or while it is loaded; a later revision begins anew."""
    for count in range(1, CRASHES_MAX + 1):
        running = died_in(tmp_path, ids, b"Fatal Python error: Floating point exception\n")
        assert running.is_out("m", "2") == (count == CRASHES_MAX)
        assert not running.is_out("m", "1")
        running.close()
    running = Running(tmp_path, lambda model: 2)
    assert not running.is_out("m", "2")
    running.close()
    die_in(tmp_path, ids, b"Fatal Python error", revision=2)
    running = Running(tmp_path, lambda model: 2)
    assert not running.is_out("m", "2")
    running.close()


@pytest.mark.parametrize(
    "content", [b"", b"00000000", b"0000zzzz", b"00000004nope", b"ffffffff{}", b"00000002{}"]
)
def test_a_file_that_says_nothing(tmp_path: Path, content: bytes) -> None:
    """Cleared, cut off or of another version: nothing ran."""
    (tmp_path / "running").write_bytes(content)
    write_place(tmp_path / "crashes.json", b"[]")
    running = Running(tmp_path, newest)
    assert not running.is_out("m", "2")
    assert (tmp_path / "running").read_bytes()[:8] == b"0" * 8
    running.close()


def write_wide(root: Path, version: str, outputs: int) -> None:
    """X[N,4] -> as many outputs of long names."""
    names = [f"o{i}_{'n' * 100}" for i in range(outputs)]
    facts: Callable[[str], Any] = lambda name: helper.make_tensor_value_info(  # noqa: E731
        name, TensorProto.FLOAT, ["N", 4]
    )
    nodes = [helper.make_node("Identity", ["X"], [name]) for name in names]
    graph = helper.make_graph(nodes, "wide", [facts("X")], [facts(name) for name in names])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    directory = root / "linear" / version
    directory.mkdir(parents=True)
    onnx.save(model, directory / "model.onnx")


def test_an_answer_that_no_frame_takes_is_skipped(tmp_path: Path) -> None:
    """Told as oversized, whatever the outputs are called; those beside it are answered."""
    write_wide(tmp_path / "models", "2", 4000)
    write_linear(tmp_path / "models", version="3")
    stage = Stage(tmp_path / "state", tmp_path / "models")
    stage.route(1, "2", "3")
    for _ in range(3):
        stage.predict(np.ones((1, 4)))
    answers = stage.mirrored(stage.mirror(ring_bytes=4 << 20))
    by_version = {version: told([a for a in answers if a.version == version]) for version in ("2", "3")}
    assert by_version == {"2": {("skipped", "oversized"): 3}, "3": {("done", None): 3}}
    assert all("a frame of" in (a.reason or "") for a in answers if a.version == "2")


def test_only_what_is_under_way_is_told(tmp_path: Path) -> None:
    """The file speaks of what is under way, and of nothing once it is over."""
    running = Running(tmp_path, newest)
    with running.of("m", "2", ["a", "b"]):
        assert b'"ids":["a","b"]' in (tmp_path / "running").read_bytes()
    with pytest.raises(ValueError, match="x"), running.of("m", "2", ["a"]):
        raise ValueError("x")
    running.close()
    running = Running(tmp_path, newest)
    assert not running.is_alone(("a", "m", "2"))
    running.close()
