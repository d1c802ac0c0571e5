"""What a trial said of golden rows is looked at again, within bounds, in the process that will serve."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from loaders import golden, verdicts
from loaders.registry import Registry
from loaders.session import Session, load
from loaders.verdicts import Facts, Trials
from tests.loaders import graphs


def put(root: Path, answers: list[list[float]]) -> None:
    """A version that doubles, with a golden line for each answer to [1, 2, 3, 4]."""
    directory = graphs.put(root, graphs.double(), bundle="golden = 'golden.jsonl'")
    spec = {"datatype": "FP32", "shape": [1, 4]}
    lines = [
        {
            "inputs": [{"name": "X", "data": [1, 2, 3, 4], **spec}],
            "outputs": [{"name": "Y", "data": answer, **spec}],
        }
        for answer in answers
    ]
    (directory / "golden.jsonl").write_text("\n".join(map(json.dumps, lines)))


class Taken(Trials):
    """A trial that a model has taken over: all is well, it says."""

    def facts(self, request: Any, digests: tuple[str, str], identity: str, size_bytes: int) -> Facts:
        return Facts(
            tree_sha256=digests[0],
            config_sha256=digests[1],
            canonical_sha256="c",
            batchable=True,
            inline_allowed=True,
            warm_cost_ns={1: 10_000},
            golden_lines=2,
        )


def test_a_worker_believes_no_trial(tmp_path: Path) -> None:
    """The version is failed there, with the line and the difference, and never ready."""
    put(tmp_path, [[2, 4, 6, 8], [2, 4, 6, 9]])
    told: list[tuple[str, str | None]] = []
    trials = Taken(tmp_path / "trials")
    registry = Registry(
        lambda model, version: load(tmp_path, model, version, trials=trials),
        lambda model, version, state, reason: told.append((state, reason)),
    )
    try:
        registry.want([("m", "1")])
        deadline = time.monotonic() + 30
        while [state for state, _ in told][-1:] != ["failed"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [state for state, _ in told] == ["loading", "failed"]
        assert "run again where it is to be served: line 2: output 'Y' differs by 1 at [0, 3]" in str(
            told[-1][1]
        )
        assert registry.get("m", "1") is None
    finally:
        registry.close()
        trials.close()


def test_what_answers_as_it_should_is_loaded(tmp_path: Path) -> None:
    """The same way, with lines that are met."""
    put(tmp_path, [[2, 4, 6, 8]] * 2)
    trials = Taken(tmp_path / "trials")
    assert isinstance(load(tmp_path, "m", "1", trials=trials), Session)
    trials.close()


@pytest.mark.parametrize(
    ("count", "cost_ns", "looked_at"),
    [
        (0, 1, []),
        (3, 1_000, [0, 1, 2]),
        (100, 1_000, [i * 100 // 16 for i in range(16)]),
        (100, 25_000_000, [0, 25, 50, 75]),
        (100, 10**10, [0]),
        (2, 0, [0, 1]),
    ],
)
def test_the_second_look_is_bounded(count: int, cost_ns: int, looked_at: list[int]) -> None:
    """At most sixteen lines, over the whole file, in about a fifth of a second; one at least."""
    lines = [golden.Golden(str(i), {}, {}, 0, 0) for i in range(count)]
    assert [int(line.id) for line in golden.some(lines, cost_ns)] == looked_at


class Server:
    """Stands for a trial server."""

    started = 0

    def __init__(self) -> None:
        Server.started += 1
        self.stdin = self.stdout = None

    def poll(self) -> None:
        return None

    def kill(self) -> None:
        pass

    def wait(self) -> int:
        return 0


def test_the_server_is_started_ahead_of_need_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For files that are younger than the last verdict, by one worker; not where the verdict is there already."""
    monkeypatch.setattr(verdicts, "_start", Server)
    monkeypatch.setattr(Server, "started", 0)
    directory = graphs.put(tmp_path, graphs.double())
    one, two = Trials(tmp_path / "trials"), Trials(tmp_path / "trials")
    one.prepare(directory)
    assert Server.started == 1
    one.prepare(directory)
    two.prepare(directory)
    assert Server.started == 1
    one.close()
    # A verdict was written since.
    (tmp_path / "trials" / "verdict.json").write_text("{}")
    two.prepare(directory)
    assert Server.started == 1
    time.sleep(0.02)
    (directory / "more").write_text("x")
    two.prepare(directory)
    assert Server.started == 2
    two.prepare(tmp_path / "gone")
    two.close()


def test_a_new_version_finds_the_server_ready(tmp_path: Path) -> None:
    """In a real load it is started before the files are read."""
    seen: list[bool] = []
    directory = graphs.put(tmp_path, graphs.double())
    trials = Trials(tmp_path / "trials")
    asked = trials._ask

    def ask(line: bytes) -> bytes:
        seen.append(trials._server is not None)
        return asked(line)

    trials._ask = ask  # type: ignore[method-assign]
    assert isinstance(load(tmp_path, "m", "1", trials=trials), Session)
    trials.close()
    assert seen == [True]
    assert directory.is_dir()
