"""A figure is of the code, locks and model that made it: of others it is measured anew, and never kept as theirs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fake_product import Fake

from bench.peers import calibration, comparison, keeping
from bench.peers import run as runs
from bench.peers.adapters import PEERS
from bench.peers.comparison import Comparison, Job
from bench.peers.figures import Chosen, Found, How, Pair, Start
from bench.peers.keeping import LOCKS, Code, Kept, lock_of
from bench.peers.peer import Setting
from gateway.errors import ConfigInvalid

ROOT = Path(__file__).resolve().parents[2]
CHOSEN = Chosen(setting=Setting(1, False), reason="given")
PAIR = Pair(peer="fake", model="mlp", theirs=CHOSEN, ours=CHOSEN)
COUNT = {
    "gateway/core.py", "loaders/session.py", "shadow/sidecar.py", "bench/peers/adapters/bentoml.py",
    "bench/peers/served/bentoml_app.py", "bench/peers/served_process.py", "bench/peers/processes.py",
    "bench/peers/oip.py", "bench/peers/raw_form.py", "bench/peers/asking.py", "bench/peers/loads.py",
    "bench/requests.py", "bench/models.py", "bench/wrk.py", f"{LOCKS}/bentoml.lock",
}  # fmt: skip
DO_NOT = {
    "docs/peers.py", "tests/bench/test_peer_code.py", "bench/peers/page.py", "bench/plot.py", "bench/cli_peers.py",
    "bench/peers/probes/loss.py", "bench/peers/settings.json",
}  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files that count, and such as do not."""
    for name in COUNT | DO_NOT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    return tmp_path


@pytest.mark.parametrize("name", sorted(COUNT))
def test_whatever_makes_a_figure_is_in_its_digest(name: str, tree: Path) -> None:
    """A line of what serves on either side, of how it is asked and counted, or of a lock."""
    before = Code.now(tree)
    (tree / name).write_text("a = 2\n")
    now = Code.now(tree)
    assert before.of("bentoml") != now.of("bentoml")
    with pytest.raises(ConfigInvalid, match=name):
        before.demand_same(now)
    (tree / name).unlink()
    assert Code.now(tree).of("bentoml") not in {before.of("bentoml"), now.of("bentoml")}


@pytest.mark.parametrize("name", sorted(DO_NOT))
def test_what_only_says_it_is_not(name: str, tree: Path) -> None:
    """A page is made again without measuring again."""
    before = Code.now(tree)
    (tree / name).write_text("a = 2\n")
    before.demand_same(Code.now(tree))
    assert before.of("bentoml") == Code.now(tree).of("bentoml")


def test_another_peers_lock_is_not(tree: Path) -> None:
    """Whoever takes another version of one product measures that one anew."""
    before = Code.now(tree)
    (tree / LOCKS / "bentoml.lock").write_text("b==2\n")
    assert before.of("ray-serve") == Code.now(tree).of("ray-serve")


def test_every_lock_is_of_a_peer() -> None:
    """By its name: no lock is left out of its peer's digest."""
    known = {lock_of(peer.name) for peer in PEERS}
    locks = {f"{LOCKS}/{file.name}" for file in (ROOT / LOCKS).glob("*.lock")}
    assert locks
    assert locks <= known
    assert locks <= set(Code.now().files)


def _imported(name: str) -> set[str]:
    """Modules of the bench that a file imports, as paths."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            dotted = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        else:
            continue
        found.update(f"{one.replace('.', '/')}.py" for one in dotted if one.startswith("bench"))
    return {name for name in found if (ROOT / name).is_file()}


def test_nothing_that_measures_is_left_out() -> None:
    """Whatever a comparison and its products import, at any depth, is in the digest."""
    seen: set[str] = set()
    todo = {"bench/peers/comparison.py"}
    todo |= {str(file.relative_to(ROOT)) for file in (ROOT / "bench/peers/adapters").glob("*.py")}
    todo |= {str(file.relative_to(ROOT)) for file in (ROOT / "bench/peers/served").glob("*.py")}
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= _imported(name) - seen
    assert len(seen) > 30
    assert seen - set(Code.now().files) == set()
    for package in ("gateway", "loaders", "shadow", "bench/peers/adapters", "bench/peers/served"):
        assert all(str(file.relative_to(ROOT)) in Code.now().files for file in (ROOT / package).rglob("*.py"))


def compared(tmp_path: Path, code: Code, model: bytes = b"model") -> Comparison:
    """A comparison of one cell, for its keys."""
    file = tmp_path / "models" / "mlp" / "1" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model)
    job = Job(
        ours=Fake("ours"), peers=[Fake()], models=("mlp",), versions={"ours": "1", "fake": "1"}, how=How()
    )
    kept = Kept(tmp_path / "kept", code)
    return Comparison(
        job, kept, tmp_path / "models", machine="this", say=lambda _: None, passed=lambda *_: None
    )


def test_a_rounds_key_has_code_lock_and_model(tmp_path: Path) -> None:
    """Each of them makes another key; the same ones the same."""
    files = {"gateway/core.py": "1", lock_of("fake"): "1", lock_of("other"): "1"}

    def key(model: bytes = b"model", **changed: str) -> str:
        code = Code({**files, **{name.replace("__", "/"): seen for name, seen in changed.items()}})
        return compared(tmp_path, code, model)._key(PAIR, "round", 1)

    assert key() == key()
    assert key() == key(**{lock_of("other"): "2"})
    keys = [key(), key(b"another"), key(**{"gateway/core.py": "2"}), key(**{lock_of("fake"): "2"})]
    assert len(set(keys)) == len(keys)


def test_code_that_changes_meanwhile_ends_the_run_and_nothing_of_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither under the digest that it began with nor under the other; what was kept before stays."""
    code = Code({"gateway/core.py": "1"})
    monkeypatch.setattr(keeping.Code, "now", lambda: code)
    made = compared(tmp_path, code)
    starts = iter((lambda: None, lambda: monkeypatch.setattr(keeping.Code, "now", lambda: Code({}))))

    def start(*_: object) -> tuple[float, None, int]:
        next(starts)()
        return 1.0, None, 0

    monkeypatch.setattr(comparison, "start", start)
    with pytest.raises(ConfigInvalid, match=r"the code changed while it was measured \(gateway/core\.py\)"):
        made.run([PAIR])
    again = Kept(tmp_path / "kept", code)
    sides = ["ours", "fake"]
    keys = [made._key(PAIR, "start", "mlp", side, 0) for side in sides]
    assert [again.get("start", key, Start) is not None for key in keys] == [True, False]


def test_a_run_that_only_failed_meanwhile_does_not_blame_a_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not start from a tree in which something was edited: the run says so at its end."""
    code = Code({"gateway/core.py": "1"})
    monkeypatch.setattr(keeping.Code, "now", lambda: Code({"gateway/core.py": "2"}))
    made = compared(tmp_path, code)

    def fail(*_: object, **__: object) -> None:
        raise ValueError("it does not start")

    monkeypatch.setattr(comparison, "start", fail)
    monkeypatch.setattr(comparison, "started", fail)
    with pytest.raises(ConfigInvalid, match="the code changed"):
        made.run([PAIR])


def test_a_run_has_the_commit_and_code_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed, or edited, while products are installed and calibrated is not what is said to be measured."""
    monkeypatch.setattr(runs, "PEERS", (Fake("ours"), Fake("fake")))
    monkeypatch.setattr(runs, "demand", lambda _: None)
    tree = {"commit": "first", "file": "1"}
    monkeypatch.setattr(runs.report, "commit", lambda: tree["commit"])
    monkeypatch.setattr(keeping.Code, "now", lambda: Code({"gateway/core.py": tree["file"]}))
    found = calibration.fresh()
    found.peers = {"ours": {"mlp": CHOSEN}, "fake": {"mlp": CHOSEN}}
    calibration.write(tmp_path / runs.SETTINGS_FILE, found)
    monkeypatch.setattr(Fake, "prepare", lambda *_: tree.update(commit="second") or "1.0")
    seen: list[Code] = []
    monkeypatch.setattr(comparison.Comparison, "run", lambda made, _: seen.append(made._kept.code) or Found())
    wanted = runs.Wanted(models=("mlp",))
    assert runs.run(wanted, tmp_path, lambda _: None).commit == "first"
    monkeypatch.setattr(Fake, "prepare", lambda *_: tree.update(file="2") or "1.0")
    runs.run(wanted, tmp_path, lambda _: None)
    assert seen[-1] == Code({"gateway/core.py": "1"})
