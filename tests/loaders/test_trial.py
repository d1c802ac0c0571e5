"""Trial loads: whatever a model does, it does it to a child; and what came of it is kept."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loaders import trial
from loaders.errors import MemoryExceeded, ModelError, VersionChanged
from loaders.memory import WORKER_BYTES, Plan
from loaders.session import Session, load
from loaders.verdicts import Request, Trials
from tests.loaders import graphs, hostile

LIMIT_S = 60.0
"""A trial gives way to whoever else wants the processor."""


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    """One server for the module, as a worker has."""
    made = Trials(tmp_path_factory.mktemp("trials"))
    yield made
    made.close()


def tried(root: Path, trials: Trials, name: str = "m") -> Session | str:
    """The session, or why there is none."""
    try:
        return load(root, name, "1", trials=trials)
    except ModelError as exc:
        return str(exc)


@pytest.mark.parametrize("name", sorted(hostile.REFUSED))
def test_hostile_model_is_refused_with_the_reason(tmp_path: Path, trials: Trials, name: str) -> None:
    """Within seconds, in a sentence that names the model and says what was found, without a path."""
    make, words = hostile.REFUSED[name]
    make(tmp_path, "m")
    started = time.monotonic()
    why = tried(tmp_path, trials)
    assert time.monotonic() - started < LIMIT_S
    assert isinstance(why, str)
    assert re.match(r"m/1\b", why), why
    assert words in why
    assert str(tmp_path) not in why
    assert "\n" not in why


@pytest.mark.parametrize("name", sorted(hostile.HARMLESS))
def test_odd_model_loads_or_is_refused_in_time(tmp_path: Path, trials: Trials, name: str) -> None:
    """What no rule forbids meets the caps: it ends within the limit, here as in the child."""
    hostile.HARMLESS[name](tmp_path, "m")
    started = time.monotonic()
    found = tried(tmp_path, trials)
    assert time.monotonic() - started < 2 * LIMIT_S
    if name == "endless-loop":
        assert isinstance(found, Session)
        assert found.endless
        assert not found.batchable
        assert not found.inline_allowed
    if isinstance(found, str):
        assert re.match(r"m/1: its trial", found)


def test_mutated_models_end_no_trial_server(tmp_path: Path, trials: Trials) -> None:
    """Damaged files load or are refused, one after another, by one server."""
    graphs.put(tmp_path, graphs.double(), "first")
    assert isinstance(tried(tmp_path, trials, "first"), Session)
    server = trials._server
    assert server is not None
    for i, content in enumerate(hostile.mutations(60)):
        graphs.put(tmp_path, content, f"m{i}")
        tried(tmp_path, trials, f"m{i}")
    assert trials._server is server
    assert server.poll() is None


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (
            lambda: os.kill(os.getpid(), 11),
            r"it crashes ONNX Runtime \(SIGSEGV\) while ONNX Runtime loaded it",
        ),
        (os.abort, r"it crashes ONNX Runtime \(SIGABRT, perhaps for want of memory\)"),
        (lambda: os.kill(os.getpid(), 9), r"its trial was killed while .*no memory left"),
        (lambda: os._exit(3), r"its trial ended with code 3 while ONNX Runtime loaded it"),
        (lambda: any(iter(int, 1)), r"it needed more than \d s of processor time"),
        (lambda: time.sleep(60), r"its trial was killed after \d s while ONNX Runtime loaded it"),
        (lambda: bytearray(1 << 40), r"its trial needed more than 512 MiB of memory"),
        (lambda: 1 // 0, r"it cannot be loaded: ZeroDivisionError"),
    ],
    ids=["segfault", "abort", "killed", "exit", "processor", "clock", "memory", "other"],
)
def test_ending_is_named(monkeypatch: pytest.MonkeyPatch, ending: Callable[[], object], said: str) -> None:
    """A child that dies has a verdict all the same: what ended it, and what was being done."""

    def done(request: Request, say: Callable[[bytes], None]) -> None:
        say(b"load")
        ending()

    monkeypatch.setattr(trial, "_tried_here", done)
    monkeypatch.setattr(trial, "WALL_FACTOR", 1 if "after" in said else 60)
    request = Request(
        root="/nowhere",
        model="m",
        version="1",
        providers=(),
        intra_op_threads=1,
        cpu_s=0.5,
        memory_bytes=512 << 20,
    )
    with open(os.devnull, "r+b") as devnull:
        verdict = trial.tried(request, devnull.fileno())
    assert verdict.refused is not None
    assert re.search("^m/1: .*(" + said + ")", verdict.refused.text), verdict.refused.text


def test_verdict_is_kept(tmp_path: Path) -> None:
    """A second worker, and a warm restart, start no server for what was tried; a refusal is kept as well."""
    graphs.put(tmp_path, graphs.double())
    graphs.put(tmp_path, b"", "bad")
    first = Trials(tmp_path / "trials")
    facts = load(tmp_path, "m", "1", trials=first).trial
    why = tried(tmp_path, first, "bad")
    first.close()
    second = Trials(tmp_path / "trials")
    assert load(tmp_path, "m", "1", trials=second).trial == facts
    assert tried(tmp_path, second, "bad") == why
    assert second._server is None


def test_other_files_are_tried_again(tmp_path: Path, trials: Trials) -> None:
    """A verdict holds for the bytes it was given for."""
    directory = graphs.put(tmp_path, b"")
    assert isinstance(tried(tmp_path, trials), str)
    (directory / "model.onnx").write_bytes(graphs.double())
    assert isinstance(tried(tmp_path, trials), Session)


def test_child_has_no_rights(tmp_path: Path, trials: Trials) -> None:
    """The trial leaves nothing behind, and the worker's own process is untouched."""
    before = os.getpid(), os.geteuid()
    graphs.put(tmp_path, graphs.double())
    assert isinstance(tried(tmp_path, trials), Session)
    assert (os.getpid(), os.geteuid()) == before
    assert sorted(p.name for p in (tmp_path / "m" / "1").iterdir()) == ["model.onnx"]


def test_loaded_version_does_not_change(tmp_path: Path) -> None:
    """Other files under a version that is loaded are refused with both digests, in every worker."""
    directory = graphs.put(tmp_path, graphs.double())
    first, second = (Trials(tmp_path / "trials", run="7") for _ in range(2))
    before = load(tmp_path, "m", "1", trials=first).bundle.tree_sha256
    (directory / "model.onnx").write_bytes(graphs.mixing())
    after = load(tmp_path, "m", "1").bundle.tree_sha256
    with pytest.raises(VersionChanged, match=f"loaded are {before[:12]}, there are {after[:12]} now"):
        load(tmp_path, "m", "1", trials=second)
    second.release("m", "1")
    assert load(tmp_path, "m", "1", trials=second).bundle.tree_sha256 == after
    (directory / "model.onnx").write_bytes(graphs.double())
    third = Trials(tmp_path / "trials", run="8")
    assert load(tmp_path, "m", "1", trials=third).bundle.tree_sha256 == before
    for trials in (first, second, third):
        trials.close()


def test_no_memory_is_refused_with_the_sum(tmp_path: Path) -> None:
    """A version that does not fit beside what is loaded fails; once that is let go, it loads."""
    graphs.put(tmp_path, graphs.double())
    graphs.put(tmp_path, graphs.mixing(), "other")
    free = Trials(tmp_path / "trials")
    largest = max(load(tmp_path, name, "1", trials=free).trial.memory_bytes for name in ("m", "other"))
    free.close()
    # Room for either of them, not for both.
    rings_bytes = 160_000_000 - WORKER_BYTES - largest
    trials = Trials(
        tmp_path / "trials", plan=Plan(limit_bytes=200_000_000, workers=1, rings_bytes=rings_bytes)
    )
    session = load(tmp_path, "m", "1", trials=trials)
    with pytest.raises(
        MemoryExceeded, match=r"^other/1: it needs .* MB, for which .* 2 versions .* = 160 MB of 160 MB"
    ):
        load(tmp_path, "other", "1", trials=trials)
    del session
    gc.collect()
    assert load(tmp_path, "other", "1", trials=trials).trial is not None
    trials.close()


@pytest.mark.parametrize("given", [0, 10, 15])
def test_a_trial_gives_way_once(given: int) -> None:
    """Who asks may be nice already: a trial that were nicer still would get next to nothing, and run out of time."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "loaders.trial"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(trial.__file__).parents[1])},
        preexec_fn=lambda: os.setpriority(os.PRIO_PROCESS, 0, max(own, given)),
    )
    # It ends at the end of its input; until it is waited for the kernel knows what it had.
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    assert os.getpriority(os.PRIO_PROCESS, server.pid) == max(own, given, 10)
    assert server.wait() == 0
