"""`tidegate audit replay`: a logged prediction is run again and held against what was answered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from test_cli_audit import PREFIX, SOURCE, write

from gateway.audit.event import BatchFacts, ModelFacts, Prediction, Tensor
from loaders import session as sessions
from loaders.session import load

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "models"
ROWS, ROW0, TOTAL = 3, 7, 32


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The flights model, version 1."""
    root = tmp_path / "models"
    shutil.copytree(EXAMPLE / "flights" / "1", root / "flights" / "1")
    return root


@pytest.fixture
def event(models: Path) -> Prediction:
    """Three rows that were part of a run of 32."""
    session = load(models, "flights", "1")
    rng = np.random.default_rng(5)
    shapes = {spec.name: (TOTAL, *spec.shape[1:]) for spec in session.signature.inputs}
    feeds = {name: rng.uniform(0, 3, shape).astype(np.float32) for name, shape in shapes.items()}
    part = slice(ROW0, ROW0 + ROWS)

    def tensor(spec: Any, array: Any) -> Tensor:
        own = array[part]
        return Tensor(spec.name, spec.datatype, own.shape, own.tobytes())

    ran = session.run(feeds)
    return Prediction(
        kind="done",
        done_ns=1,
        rows=ROWS,
        model=ModelFacts(
            "flights", "1", session.bundle.tree_sha256, session.bundle.config_sha256, None, session.runtime
        ),
        batch=BatchFacts(1, TOTAL, ROW0, "turn"),
        inputs=[tensor(spec, feeds[spec.name]) for spec in session.signature.inputs],
        outputs=[tensor(spec, array) for spec, array in zip(session.signature.outputs, ran, strict=True)],
    )


@pytest.fixture
def replay(run, state_dir: Path, models: Path):
    """Run `audit replay --json` on the one event of a spool."""

    def call(event: Any, *args: str) -> Any:
        write(state_dir, SOURCE, [[event]])
        where = ("--state-dir", str(state_dir), "--models", str(models))
        return run("audit", "replay", PREFIX + "0" * 16, *where, *args)

    return call


def test_the_same_files_give_the_same_bits(replay, event: Prediction) -> None:
    """Whatever run a request was part of, it is answered again bit for bit."""
    result = replay(event, "--json")
    assert result.exit_code == 0
    made = json.loads(result.stdout)
    assert made["same"]
    assert made["facts"] == []
    assert {one["name"]: one["same"] for one in made["outputs"]} == {t.name: True for t in event.outputs}


def test_another_answer_is_seen_with_what_has_changed(replay, event: Prediction, models: Path) -> None:
    """One bit is enough for exit 1; files, settings and runtime that are others now are named."""
    bits = bytearray(event.outputs[-1].data or b"")
    bits[0] ^= 1
    outputs = [*event.outputs[:-1], msgspec.structs.replace(event.outputs[-1], data=bytes(bits))]
    facts = msgspec.structs.replace(event.model, runtime="onnxruntime 1.0.0 cpu x1", tree_sha256="ab" * 32)  # type: ignore[type-var]
    result = replay(msgspec.structs.replace(event, outputs=outputs, model=facts))
    assert result.exit_code == 1
    assert "differ" in result.stdout
    assert "ONNX Runtime: then 1.0.0, now" in result.stdout
    assert f"tree_sha256): then {'ab' * 32}" in result.stdout
    assert "NOT the same answer" in result.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "refused"}, "only a prediction that was answered"),
        ({"redacted": [{"input": "X"}]}, "redacted before they were logged"),
        ({"inputs": [Tensor("X", "FP32", (1,), None, "00")]}, "by hash only"),
        ({"model": ModelFacts("flights", "9")}, "version 9 cannot be loaded"),
    ],
)
def test_what_cannot_be_run_again_says_why(replay, event: Prediction, change: dict, said: str) -> None:
    """Exit 2 and one line: the record is no answer, has no inputs, or its version is gone. 1 says that bits differ."""
    result = replay(msgspec.structs.replace(event, **change))
    assert result.exit_code == 2
    assert said in result.stderr


def test_what_is_not_in_the_log_cannot_be_run(run, state_dir: Path, event: Prediction) -> None:
    """An id without a record is exit 2, too."""
    write(state_dir, SOURCE, [[event]])
    result = run("audit", "replay", PREFIX + "f" * 16, "--state-dir", str(state_dir))
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("part", "then", "said"),
    [
        (None, None, None),
        (1, "1.2.3", "ONNX Runtime: then 1.2.3, now"),
        (2, "cuda", "execution provider: then cuda, now cpu"),
        (4, "x86_64+avx", "processor: then x86_64+avx, now"),
        (4, None, "processor: then -, now"),
    ],
)
def test_each_fact_of_the_runtime_is_named(
    replay, event: Prediction, part: int | None, then: str | None, said: str | None
) -> None:
    """Version, provider, processor: the one that is another now, and no other; of old records what they do not say."""
    assert event.model is not None
    words = (event.model.runtime or "").split(" ")
    if part is not None:
        words[part : part + 1] = [] if then is None else [then]
    facts = msgspec.structs.replace(event.model, runtime=" ".join(words))
    result = replay(msgspec.structs.replace(event, model=facts), "--json")
    found = json.loads(result.stdout)["facts"]
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


def test_threads_are_as_they_were(replay, event: Prediction) -> None:
    """It runs with as many threads as then: that is no difference."""
    assert event.model is not None
    runtime = (event.model.runtime or "").replace(" x1 ", " x2 ")
    result = replay(
        msgspec.structs.replace(event, model=msgspec.structs.replace(event.model, runtime=runtime)), "--json"
    )
    assert json.loads(result.stdout)["facts"] == []


def test_a_run_that_cannot_be_as_large_as_it_was_is_named(
    replay, event: Prediction, models: Path, monkeypatch
) -> None:
    """A version that is not batched now runs its rows alone: sums may come out otherwise."""
    made = sessions.load

    def alone(*args: Any, **more: Any) -> Any:
        session = made(*args, **more)
        session.batchable = False
        return session

    monkeypatch.setattr(sessions, "load", alone)
    result = replay(event, "--json")
    assert json.loads(result.stdout)["facts"] == [f"rows of its run: then {TOTAL}, now {ROWS}"]
