"""`tidegate model publish` against a fake gateway and a real repository."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from gateway.cli import publish
from tests.loaders import graphs


class Control:
    """What control would say of a repository: versions by what is in it, in the states that it is told."""

    def __init__(self, fake, root: Path) -> None:
        self.root = root
        self.states = ["loading", "ready"]
        self.reason: str | None = None
        self.weight_bp = 0
        fake.on("GET", "/admin/v1/models", {"models": []})
        fake.on("POST", "/admin/v1/models/refresh", {"models": 1})
        fake.on("GET", "/admin/v1/models/m", lambda seen: {"name": "m", "versions": self.rows()})
        fake.on("POST", "/admin/v1/models/m/load", {"version": "1"})
        fake.on("GET", "/admin/v1/routes", lambda seen: {"routes": [self.route()]})

    def rows(self) -> list[dict[str, object]]:
        """Every version that lies there, all in the next state."""
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        names = sorted(path.name for path in (self.root / "m").iterdir() if path.is_dir())
        workers = {"0": state, "1": state}
        return [{"version": n, "state": state, "reason": self.reason, "workers": workers} for n in names]

    def route(self) -> dict[str, object]:
        """One variant for each version."""
        names = sorted(path.name for path in (self.root / "m").iterdir() if path.is_dir())
        variants = [
            {"name": f"v{n}", "version": n, "role": "canary", "weight_bp": self.weight_bp} for n in names
        ]
        return {"model": "m", "revision": 3, "variants": variants}


@pytest.fixture
def control(fake, state_dir, tmp_path) -> Control:
    """A gateway whose repository is there and empty."""
    root = tmp_path / "repository"
    root.mkdir()
    (state_dir / "repository").write_text(f"{root}\n")
    return Control(fake, root)


@pytest.fixture
def files(tmp_path) -> Path:
    """A version's files, as they are handed over."""
    directory = tmp_path / "made"
    directory.mkdir()
    (directory / "model.onnx").write_bytes(graphs.double())
    (directory / "notes").mkdir()
    (directory / "notes" / "README.md").write_text("made on Monday\n")
    return directory


def left(root: Path) -> list[str]:
    """What lies in the repository beside the model."""
    return sorted(path.name for path in root.iterdir() if path.name != "m")


def test_publish_puts_all_files_there_and_waits_until_it_is_ready(run, control, files, state_dir) -> None:
    """The first is version 1, the next 2; nothing is left beside them; it says what comes next."""
    result = run("model", "publish", str(files), "m", "--state-dir", str(state_dir))
    assert result.exit_code == 0, result.stderr
    placed = control.root / "m" / "1"
    assert sorted(p.relative_to(placed).as_posix() for p in placed.rglob("*") if p.is_file()) == [
        "model.onnx",
        "notes/README.md",
    ]
    assert left(control.root) == []
    assert "m version 1 is ready in 2 workers" in result.stdout
    assert "`tidegate route shift m 1=1%" in result.stdout
    (files / "model.onnx").write_bytes(graphs.mixing())
    control.weight_bp = 10_000
    again = run("model", "publish", str(files), "m", "--json", "--state-dir", str(state_dir))
    told = json.loads(again.stdout)
    assert (told["version"], told["workers"], told["weight_bp"]) == ("2", 2, 10_000)
    assert told["check"]["tree_sha256"]


def test_asked_again_it_makes_no_second_version_of_the_same_files(run, control, files, state_dir) -> None:
    """As after an interruption: what is there is waited for."""
    at = ("--state-dir", str(state_dir))
    for words in ((), (), ("1",)):
        result = run("model", "publish", str(files), "m", *words, *at)
        assert result.exit_code == 0, result.stderr
    assert [path.name for path in (control.root / "m").iterdir()] == ["1"]
    (files / "model.onnx").write_bytes(graphs.mixing())
    other = run("model", "publish", str(files), "m", "1", *at)
    assert other.exit_code == 1
    assert "a version never changes" in other.stderr
    assert left(control.root) == []


def test_what_is_refused_here_is_not_published(run, control, files, state_dir) -> None:
    """Exit 1 with the reason; the repository is as it was."""
    (files / "model.onnx").write_bytes(b"no model")
    result = run("model", "publish", str(files), "m", "--state-dir", str(state_dir))
    assert result.exit_code == 1
    assert "nothing was published: m" in result.stderr
    assert list(control.root.iterdir()) == []


def test_the_models_settings_are_part_of_what_is_tried(run, control, files, state_dir) -> None:
    """A version that contradicts the config.pbtxt of its model is refused before it is there."""
    (control.root / "m").mkdir()
    (control.root / "m" / "config.pbtxt").write_text(
        'name: "m" input { name: "no" data_type: TYPE_FP32 dims: 1 }'
    )
    result = run("model", "publish", str(files), "m", "--state-dir", str(state_dir))
    assert result.exit_code == 1, result.stdout
    assert sorted(path.name for path in (control.root / "m").iterdir()) == ["config.pbtxt"]


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")], ids=["pipe", "link"]
)
def test_only_plain_files_are_published(run, control, files, state_dir, make) -> None:
    """A link would be another file tomorrow, a pipe would be waited for."""
    make(files / "odd")
    result = run("model", "publish", str(files), "m", "--state-dir", str(state_dir))
    assert result.exit_code == 2
    assert "odd is no plain file" in result.stderr
    assert list(control.root.iterdir()) == []


def test_what_a_worker_refuses_is_exit_1_with_its_reason(run, control, files, state_dir) -> None:
    """The files stay, as with any version that fails; the reason is the worker's."""
    control.states, control.reason = ["loading", "failed"], "no memory for it"
    result = run("model", "publish", str(files), "m", "--state-dir", str(state_dir))
    assert result.exit_code == 1
    assert "no memory for it" in result.stderr


def test_what_the_settings_do_not_choose_is_asked_for_by_name(
    run, fake, control, files, state_dir, monkeypatch
) -> None:
    """Published means loaded, whatever version_policy says; asked for once, and only what does not come by itself."""
    control.states = ["absent", "absent", "loading", "ready"]
    assert run("model", "publish", str(files), "m", "--state-dir", str(state_dir)).exit_code == 0
    assert not any(seen.path.endswith("/load") for seen in fake.seen)
    monkeypatch.setattr(publish, "ABSENT_S", 0.0)
    control.states = ["absent", "absent", "loading", "ready"]
    result = run("model", "publish", str(files), "m", "--state-dir", str(state_dir))
    assert result.exit_code == 0, result.stderr
    loads = [seen.body for seen in fake.seen if seen.path.endswith("/load")]
    assert [body["version"] for body in loads] == ["1"]


def test_it_waits_no_longer_than_asked(run, control, files, state_dir) -> None:
    """Exit 1, and what to look at."""
    control.states = ["loading"]
    result = run("model", "publish", str(files), "m", "--wait-s", "0", "--state-dir", str(state_dir))
    assert result.exit_code == 1
    assert "`tidegate model show m`" in result.stderr


def test_without_a_gateway_nothing_is_copied(run, control, files, fake, state_dir) -> None:
    """Unreachable is 3, another gateway than the repository's is 2."""
    gone = run(
        "model", "publish", str(files), "m", "--admin", "http://127.0.0.1:9", "--state-dir", str(state_dir)
    )
    assert gone.exit_code == 3
    assert list(control.root.iterdir()) == []
    fake.on("GET", "/admin/v1/models/m", {"name": "m", "versions": []})
    other = run("model", "publish", str(files), "m", "--state-dir", str(state_dir))
    assert other.exit_code == 2
    assert "--models" in other.stderr


@pytest.mark.parametrize("version", ["0", "01", "v2", "../3", "-1"])
def test_versions_are_numbers(run, control, files, fake, state_dir, version) -> None:
    """Refused before anything is asked."""
    result = run("model", "publish", "--state-dir", str(state_dir), "--", str(files), "m", version)
    assert result.exit_code == 2
    assert fake.seen == []


def test_two_at_once_become_two_versions(control, files, tmp_path) -> None:
    """The rename is the draw: who comes second takes the next number."""
    roots = []
    for index, content in enumerate((graphs.double(), graphs.mixing())):
        staged = control.root / f"{publish.STAGED}{index}"
        (staged / "m" / "1").mkdir(parents=True)
        (staged / "m" / "1" / "model.onnx").write_bytes(content)
        roots.append(staged)
    barrier, got = threading.Barrier(2), []

    def put(staged: Path) -> None:
        barrier.wait()
        got.append(publish._put(control.root, staged, "m", None))

    threads = [threading.Thread(target=put, args=(staged,)) for staged in roots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["1", "2"]
    contents = {(control.root / "m" / n / "model.onnx").read_bytes() for n in got}
    assert contents == {graphs.double(), graphs.mixing()}


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "-x", "a" * 129])
def test_name_that_leads_elsewhere_is_none(run, control, files, state_dir, tmp_path, name: str) -> None:
    """As a directory it would be another's, as part of an address another address: nothing is copied or asked."""
    before = sorted(tmp_path.rglob("*"))
    result = run("model", "publish", "--state-dir", str(state_dir), "--", str(files), name)
    assert result.exit_code == 2
    assert "is not a name" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
