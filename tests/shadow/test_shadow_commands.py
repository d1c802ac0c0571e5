"""`tidegate decision` and `tidegate drift` on the log of a story."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest

from gateway.cli import command
from loaders.bundle import tree_sha256
from tests.gateway.audit.sim import GATEWAY_ID, Log
from tests.shadow.play import Arm, traffic
from tests.shadow.story import MODEL, SECOND_NS, Stage, labels, route

Run = Callable[..., click.testing.Result]
BUNDLE = """
[outputs.probabilities]
kind = "probability"
decision = { column = 1, threshold = 0.5 }
[labels]
kind = "class"
maturity_s = 0
"""
ARMS = {"primary": (8000, Arm("1", 0.01)), "canary": (2000, Arm("2", 0.15))}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `tidegate ARGS...` on the log of this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    place = ("--state-dir", str(tmp_path / "state"), "--models", str(tmp_path / "models"))

    def call(*args: str) -> click.testing.Result:
        result = click.testing.CliRunner().invoke(command, [*args, *place])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """An empty log of a gateway, version 1 on disk with its bundle and version 2 without."""
    directory = tmp_path / "models" / MODEL / "1"
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(b"graph")
    (directory / "bundle.toml").write_text(BUNDLE)
    stage = Stage(Log(tmp_path / "state"), tmp_path / "models")
    (tmp_path / "state" / "gateway_id").write_text(GATEWAY_ID)
    stage.sidecar.adopt([])
    return stage


@pytest.fixture
def told(stage: Stage) -> Stage:
    """Version 2 fails more often until it is rolled back; version 1 has labels."""
    stage.say(route(1), route(2, canary="2", weight_bp=2000))
    tree = tree_sha256(stage.models / MODEL / "1")
    for seed in range(5):
        for event in traffic(200, 2, ARMS, seed):
            assert event.model is not None
            if event.model.version == "1":
                event.model = type(event.model)(name=MODEL, version="1", tree_sha256=tree)
            seq = stage.workers[0].append_events([event])
            assert seq is not None
            if seed == 0:
                stage.workers[1].append_events([labels((stage.workers[0].event_id(seq), 0, 0))])
        stage.say()
        stage.tick()
    return stage


def answer(result: click.testing.Result, exit_code: int = 0) -> Any:
    """What was printed as JSON."""
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def test_list_and_show(run: Run, told: Stage) -> None:
    """Each decision in words with its id, under which all of it is shown."""
    (decision,) = answer(run("decision", "list", "--json"))
    assert (decision["cause"], decision["action"]) == ("harm.failed", "rollback")
    plain = run("decision", "list")
    assert plain.exit_code == 0
    first, second, third = plain.stdout.splitlines()
    assert first.endswith("flights  rollback (harm.failed)")
    assert second.strip() == decision["says"]
    assert third.strip() == f"id {decision['id']}"
    assert answer(run("decision", "show", decision["id"], "--json")) == decision
    shown = run("decision", "show", decision["id"]).stdout
    for part in ("version 2 fails", "primary 80% -> 100%, canary 20% -> 0%", "harm.failed", "needed"):
        assert part in shown
    assert answer(run("decision", "list", "--model", "other", "--json")) == []
    assert "no decisions" in run("decision", "list", "--model", "other").stdout


def test_watched_decisions_are_told_once(run: Run, told: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that there are, then each as it comes, a JSON line each where nobody looks; Ctrl-C is exit 0."""
    looks = iter((None, None))

    def sleep(_: float) -> None:
        if next(looks, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr("shadow.cli.decision.time.sleep", sleep)
    (decision,) = answer(run("decision", "list", "--json"))
    result = run("decision", "list", "--watch")
    assert result.exit_code == 0
    assert [json.loads(line) for line in result.stdout.splitlines()] == [decision]
    refused = run("decision", "list", "--watch", "--kafka", "127.0.0.1:9")
    assert refused.exit_code == 2


def test_show_of_no_decision(run: Run, told: Stage) -> None:
    """Exit 1 and where to look."""
    result = run("decision", "show", "nonsense")
    assert result.exit_code == 1
    assert "decision list" in result.stderr


def test_replay_bears_the_log_out(run: Run, told: Stage) -> None:
    """Folded again: the same decisions and counts."""
    found = answer(run("decision", "replay", "--json"))
    assert (found["ticks"], found["differing"], found["incomplete_ticks"]) == (5, 0, 0)
    assert found["counts"] == told.sidecar.watch.state.counts
    assert found["labels"] == told.sidecar.watch.state.labels
    (one,) = found["decisions"]
    assert one["differs"] is None
    assert one["stored"] == one["made"]
    plain = run("decision", "replay")
    assert plain.exit_code == 0
    assert "the log bears them out" in plain.stdout


def test_replay_tells_what_differs(run: Run, told: Stage) -> None:
    """A decision that nobody made from this log: exit 1, and what is not the same."""
    (event,) = [event for event in told.verdicts() if event.kind == "decision"]
    forged = dict(event.body, cause="harm.wrong", tick=5)
    writer = told.sidecar._writer
    writer.append_events([type(event)(kind="decision", at_ns=1, model=MODEL, body=forged)])
    told.say()
    result = run("decision", "replay")
    assert result.exit_code == 1
    assert "not made again" in result.stdout
    assert "1 decisions are not what the log gives" in result.stderr
    assert answer(run("decision", "replay", "--json"), 1)["differing"] == 1


def test_drift_report(run: Run, told: Stage) -> None:
    """Accuracy by week, what became of labels, rollouts; and of which version what is not watched."""
    found = answer(run("drift", "report", "--json"))
    week = found["accuracy"][MODEL]["1"]["1969-12-29"]
    assert week["rows"] > 500
    assert week["wrong"] > 0
    assert found["labels"]["kept"] > 100
    assert found["rollouts"][0]["decided"] == {"harm.failed": "rollback"}
    assert any("flights/2 is not there" in note for note in found["notes"])
    assert any("flights/1 has no reference" in note for note in found["notes"])
    plain = run("drift", "report")
    assert plain.exit_code == 0
    for part in ("1969-12-29", "rollback (harm.failed)", "kept", "flights/2 is not there", "failures count"):
        assert part in plain.stdout
    assert answer(run("drift", "report", "--model", "other", "--json"))["rollouts"] == []
    assert "no label has come due" in run("drift", "report", "--model", "other").stdout


@pytest.mark.parametrize("words", [("decision", "replay"), ("drift", "report")])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_log_without_a_tick(run: Run, stage: Stage, words: tuple[str, ...], as_json: list[str]) -> None:
    """Exit 1, one clear line."""
    stage.say(route(1))
    result = run(*words, *as_json)
    assert result.exit_code == 1
    assert "no tick of a sidecar" in result.stderr
    assert result.stdout == ""
    assert answer(run("decision", "list", "--json")) == []


@pytest.mark.parametrize("words", [("decision", "list"), ("decision", "replay"), ("drift", "report")])
def test_no_gateway_was_ever_there(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    """A state directory that holds nothing."""
    os.makedirs(tmp_path / "state" / "spool")
    result = run(*words)
    assert result.exit_code == 1
    assert "no gateway was ever started" in result.stderr


def test_a_log_that_lost_records(run: Run, told: Stage) -> None:
    """Segments of a worker are gone: no fold that pretends."""
    source = told.workers[0].source.source
    for segment in sorted((told.log.spool / f"{source:016x}").rglob("*.log"))[:1]:
        segment.unlink()
    told.say(*traffic(5, 2, ARMS, 9, at_ns=SECOND_NS))
    result = run("decision", "replay")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
