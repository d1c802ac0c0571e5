"""`tidegate shadow report`: a log folded into pairs of versions, whatever order it is read in."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest

from gateway.audit.event import EpochOpen, Event, ModelFacts, Prediction, Shadow, Tensor
from gateway.audit.identity import id_prefix, source_of
from gateway.cli import command
from loaders.bundle import tree_sha256
from loaders.session import load
from shadow import report as report_module
from shadow.bundles import Bundles
from shadow.report import GATEWAYS_MAX, Pair, Report, shown
from tests.gateway.audit.sim import GATEWAY_ID
from tests.shadow.mirrored import Stage, prediction, route_event, tensor

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "models"
OTHER_GATEWAY = "ffffffffffffffff"


def invoke(*args: str) -> click.testing.Result:
    """Run `tidegate shadow report ARGS` in this process."""
    return click.testing.CliRunner().invoke(
        command, ["shadow", "report", *args], prog_name="tidegate", env={"COLUMNS": "200"}
    )


class Quickstart(Stage):
    """The example's two versions; version 1 answers, version 2 shadows."""

    def __init__(self, tmp_path: Path) -> None:
        models = tmp_path / "models"
        shutil.copytree(EXAMPLES, models)
        super().__init__(tmp_path / "state", models)
        self.first = load(models, "quickstart", "1")
        self.second = load(models, "quickstart", "2")

    def answer(self, values: np.ndarray, **facts: Any) -> str:
        """Version 1 answers, as a worker would log it."""
        outputs = [
            tensor(spec.name, array, array.dtype)
            for spec, array in zip(self.first.signature.outputs, self.first.run({"X": values}), strict=True)
        ]
        event = prediction(values, model="quickstart", outputs=outputs, **facts)
        assert event.model is not None
        tree = tree_sha256(self.models / "quickstart" / "1")
        event.model = type(event.model)("quickstart", "1", tree)
        first_seq = self.worker.append_events([event])
        assert first_seq is not None
        return self.worker.event_id(first_seq)

    def report(self, *args: str) -> click.testing.Result:
        """The command on this log."""
        self.settle()
        return invoke("--state-dir", str(self.log.state_dir), "--models", str(self.models), *args)


@pytest.fixture
def quickstart(tmp_path: Path) -> Quickstart:
    """An empty log of the quickstart example."""
    return Quickstart(tmp_path)


def flowers(count: int, seed: int) -> np.ndarray:
    """Rows as the quickstart takes them."""
    return np.random.default_rng(seed).uniform(0, 8, (count, 4)).astype(np.float32)


def test_the_report_says_what_the_models_say(quickstart: Quickstart):
    """Counts and shift are those of running both versions on the same rows; the worst row's id leads to its record."""
    quickstart.route(1, "2", model="quickstart")
    asked = {}
    for seed in range(30):
        values = flowers(3, seed)
        asked[quickstart.answer(values)] = values
    quickstart.answer(flowers(1, 99), capture="hash", inputs=[tensor("X", flowers(1, 99))])
    quickstart.mirrored(quickstart.mirror())
    result = quickstart.report("--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["pairs"]
    assert (found["model"], found["primary"], found["shadow"]) == ("quickstart", "1", "2")
    assert (found["pairs"], found["rows"], found["skipped"]) == (30, 90, {"hash": 1})
    flips = 0
    shifts = []
    for values in asked.values():
        first, second = (version.run({"X": values}) for version in (quickstart.first, quickstart.second))
        both = [next(a for a in outputs if a.dtype.kind == "f") for outputs in (first, second)]
        flips += int((both[0].argmax(axis=1) != both[1].argmax(axis=1)).sum())
        shifts += (both[1].max(axis=1) - both[0].max(axis=1)).tolist()
    assert found["flipped"] == flips > 0
    assert sum(flip["rows"] for flip in found["flips"]) == flips
    assert found["score"]["mean"] == pytest.approx(np.mean(shifts), abs=1e-6)
    worst = found["worst"][0]
    assert abs(worst["shift"]) == pytest.approx(np.abs(shifts).max(), abs=1e-6)
    assert worst["id"] in asked


def test_the_table_names_classes_and_reasons(quickstart: Quickstart):
    """For people: classes by their names in bundle.toml, what was skipped and why."""
    quickstart.route(1, "2", model="quickstart")
    for seed in range(30):
        quickstart.answer(flowers(3, seed))
    quickstart.answer(flowers(1, 99), capture="hash")
    quickstart.mirrored(quickstart.mirror())
    result = quickstart.report()
    assert result.exit_code == 0, result.output
    assert "quickstart: version 1 answered, version 2 beside it" in result.stdout
    assert "hash 1" in result.stdout
    assert any(name in result.stdout for name in ("small", "middle", "large"))
    assert "score shift" in result.stdout


def test_nothing_to_compare_says_what_to_do(quickstart: Quickstart):
    """Exit 1: without a shadow, and with one that has not answered."""
    quickstart.answer(flowers(1, 0))
    result = quickstart.report()
    assert result.exit_code == 1
    assert "tidegate route set MODEL" in result.stderr
    quickstart.route(1, "2", model="quickstart")
    result = quickstart.report("--json")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)["pairs"]
    assert (found["pairs"], found["unanswered"]) == (0, 1)
    assert "none has answered" in result.stderr


def test_other_files_than_answered_are_read_without_meaning(quickstart: Quickstart):
    """A bundle that changed since gives no meaning to older records; the report says so."""
    quickstart.route(1, "2", model="quickstart")
    quickstart.answer(flowers(2, 1))
    quickstart.mirrored(quickstart.mirror())
    (quickstart.models / "quickstart" / "1" / "README.md").write_text("another")
    document = json.loads(quickstart.report("--json").stdout)
    assert "files changed" in document["unread"]["quickstart/1"]
    assert document["pairs"][0]["pairs"] == 1


def small_log() -> list[Event]:
    """Two gateways; 40 predictions each, three in four sampled, some doubled, one shadow failed, two missing."""
    events: list[Event] = []
    for gateway_id in (GATEWAY_ID, OTHER_GATEWAY):
        worker = id_prefix(source_of(gateway_id, "worker", 0), 7)
        mirror = id_prefix(source_of(gateway_id, "mirror", 0), 7)
        events.append(
            EpochOpen(gateway_id=gateway_id, role="worker", index=0, prev_epoch=None, id=f"{worker}{0:016x}")
        )
        route = route_event(1, "2")
        route.gateway_id = gateway_id
        route.id = f"{id_prefix(source_of(gateway_id, 'control', 0), 7)}{1:016x}"
        events.append(route)
        for i in range(1, 41):
            asked = prediction([[0, 0, 0, 0]], id=f"{worker}{i:016x}", unit=f"{i:016x}")
            asked.outputs = [tensor("y", [i / 4])]
            if i % 4 == 0:
                assert asked.route is not None
                asked.route = type(asked.route)(1, 1, "primary", "primary", 10_000, "pinned", None)
            events.append(asked)
            if i % 4 == 0 or i in {1, 2}:
                continue
            answer = Shadow(
                kind="failed" if i == 3 else "done",
                derived_from=asked.id,
                version="2",
                run="live",
                id=f"{mirror}{i:016x}",
                outputs=[] if i == 3 else [tensor("y", [i / 4 + 1])],
                code="inference_failed" if i == 3 else None,
            )
            events += [answer] * (2 if i % 5 == 0 else 1)
    return events


@pytest.mark.parametrize("seed", range(8))
def test_any_order_gives_the_same_report(tmp_path: Path, seed: int):
    """Predictions, routes and shadows may be read in any order, and twice."""
    events = small_log()
    random.Random(seed).shuffle(events)
    found = Report(Bundles(tmp_path))
    for event in events:
        found.take(event)
    found.close()
    (pair,) = found.pairs
    assert pair == Pair("linear", "1", "2")
    comparison = found.pairs[pair]
    assert (comparison.pairs, comparison.failed, comparison.shift.mean) == (54, {"inference_failed": 2}, 1.0)
    assert found.unanswered == {pair: 4}


def test_one_gateway_of_a_topic(tmp_path: Path):
    """Named, only its own requests count."""
    found = Report(Bundles(tmp_path), gateway_id=OTHER_GATEWAY)
    for event in small_log():
        found.take(event)
    found.close()
    assert [comparison.pairs for comparison in found.pairs.values()] == [27]
    assert list(found.unanswered.values()) == [2]


def test_one_model(tmp_path: Path):
    """Others are passed over."""
    found = Report(Bundles(tmp_path), model="other")
    for event in small_log():
        found.take(event)
    found.close()
    assert found.pairs == found.unanswered == {}


def test_nothing_waits_for_what_will_not_come(tmp_path: Path):
    """Requests that no shadow is to answer are not kept, whatever their number."""
    found = Report(Bundles(tmp_path))
    for event in small_log():
        found.take(event)
    assert len(found._waiting) == 4
    assert not found._early
    assert sum(map(len, found._ahead.values())) == 12, "one each double"


def test_a_route_that_only_says_whose_it_is(tmp_path: Path):
    """Of another source than the gateway's control: not taken, so that no one ends or begins another's shadows."""
    found = Report(Bundles(tmp_path))
    forged = route_event(1)
    forged.id = f"{id_prefix(source_of(OTHER_GATEWAY, 'control', 0), 7)}{9:016x}"
    for event in [forged, *small_log()]:
        found.take(event)
    found.close()
    assert [comparison.pairs for comparison in found.pairs.values()] == [54]


def odd_pair(version: str, output: Tensor) -> list[Event]:
    """A version that answered with an output, and a shadow that did."""
    opened, route, *events = small_log()
    answer = next(event for event in events if isinstance(event, Shadow) and event.kind == "done")
    asked = next(event for event in events if event.id == answer.derived_from)
    assert isinstance(asked, Prediction)
    asked.model = ModelFacts("linear", version)
    asked.outputs, answer.outputs = [output], [output]
    return [opened, route, asked, answer]


@pytest.mark.parametrize(
    ("version", "output", "says"),
    [
        ("\u00b2", tensor("y", [1.0]), None),
        ("9" * 5000, tensor("y", [1.0]), None),
        ("1", Tensor("y", "FP99", (1, 1), b"1234"), "unknown datatype 'FP99'"),
        ("1", Tensor("y", "FP32", (1, 1), b"123"), "multiple of element size"),
        ("../../x", tensor("y", [1.0]), None),
        ("a\0b", tensor("y", [1.0]), None),
    ],
)
def test_odd_records_are_told_and_passed_over(tmp_path: Path, version: str, output: Tensor, says: str | None):
    """Versions that are no numbers, datatypes of the future, broken data: no judgement, and a reason."""
    found = Report(Bundles(tmp_path))
    for event in odd_pair(version, output):
        found.take(event)
    found.close()
    ((pair, comparison, _),) = shown(found)
    assert pair == Pair("linear", version, "2")
    if says is None:
        assert comparison.pairs == 1
    else:
        ((reason, count),) = comparison.unjudged.items()
        assert (says in reason, count) == (True, 1)


def test_gateways_of_a_topic_are_bounded(tmp_path: Path):
    """Anyone may open epochs in any gateway's name: so many are followed, and one that is named always is."""
    for only, books in ((None, GATEWAYS_MAX), (OTHER_GATEWAY, 1)):
        found = Report(Bundles(tmp_path), gateway_id=only)
        for number in range(GATEWAYS_MAX + 10):
            found.take(EpochOpen(gateway_id=f"{number:016x}", role="worker", index=0, prev_epoch=None))
        found.take(EpochOpen(gateway_id=OTHER_GATEWAY, role="worker", index=0, prev_epoch=None))
        assert len(found._books) == books


def test_answers_to_nothing_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Shadow events whose prediction never comes: the oldest go."""
    monkeypatch.setattr(report_module, "WAITING_MAX", 10)
    found = Report(Bundles(tmp_path))
    for number in range(30):
        found.take(Shadow(kind="failed", derived_from=f"{number}", version="2", run="live"))
    assert list(found._ahead) == [f"{number}" for number in range(20, 30)]
