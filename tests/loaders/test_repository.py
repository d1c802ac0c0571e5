"""What is taken for a model, and what is told of the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loaders.errors import RepositoryMissing
from loaders.repository import scan, version_directory


def touch(root: Path, path: str) -> None:
    """An empty file, with its directories."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()


def test_versions_are_numbers(tmp_path: Path) -> None:
    """Versions come in the order of their numbers, models by name."""
    for path in ("b/2/model.onnx", "b/10/model.onnx", "b/1/model.onnx", "a/7/model.onnx"):
        touch(tmp_path, path)
    found = scan(tmp_path)
    assert list(found.models.items()) == [("a", ("7",)), ("b", ("1", "2", "10"))]
    assert found.problems == ()
    assert version_directory(tmp_path, "a", "7") == tmp_path / "a" / "7"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("m.onnx", "m.onnx: put it at m/1/model.onnx"),
        ("m/model.onnx", "m/model.onnx: put it at m/1/model.onnx"),
        ("my model/1/model.onnx", "my model: not a model name"),
        ("m/v1/model.onnx", "m/v1: versions are positive integers"),
        ("m/0/model.onnx", "m/0: versions are positive integers"),
        ("m/01/model.onnx", "m/01: versions are positive integers"),
        ("m/\u0661/model.onnx", "versions are positive integers"),
        ("m/config.pbtxt", "m: has no version: put a model at m/1/model.onnx"),
        ("m/1/net.onnx", "m/1: has no model.onnx"),
        ("m/1/model.onnx/x", "m/1: has no model.onnx"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, path: str, said: str) -> None:
    """One line with what to do, and the rest is served."""
    touch(tmp_path, "good/1/model.onnx")
    touch(tmp_path, path)
    found = scan(tmp_path)
    assert found.models == {"good": ("1",)}
    assert len(found.problems) == 1
    assert said in found.problems[0]
    assert str(tmp_path) not in found.problems[0]


def test_what_is_no_model_is_left_alone(tmp_path: Path) -> None:
    """Hidden entries, notes and Triton's own files are no problem."""
    for path in (".git/1/model.onnx", "README.md", "m/config.pbtxt", "m/.tmp/model.onnx", "m/1/model.onnx"):
        touch(tmp_path, path)
    assert scan(tmp_path) == ({"m": ("1",)}, (), {})


@pytest.mark.parametrize("link", ["m", "m/1"])
def test_links_that_leave_the_repository(tmp_path: Path, link: str) -> None:
    """A link to elsewhere is not followed; one within the repository is."""
    root = tmp_path / "models"
    touch(tmp_path, "elsewhere/1/model.onnx")
    touch(root, "real/1/model.onnx")
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(tmp_path / ("elsewhere" if link == "m" else "elsewhere/1"))
    (root / "alias").symlink_to(root / "real")
    found = scan(root)
    assert set(found.models) == {"real", "alias"}
    assert found.problems == (f"{link}: a link that leaves the repository",)


def test_file_that_leaves_the_repository(tmp_path: Path) -> None:
    """A model file that is a link to elsewhere is refused; one within the repository is not."""
    root = tmp_path / "models"
    touch(tmp_path, "secret.onnx")
    touch(root, "m/1/model.onnx")
    for version, target in (("2", tmp_path / "secret.onnx"), ("3", root / "m/1/model.onnx")):
        (root / "m" / version).mkdir()
        (root / "m" / version / "model.onnx").symlink_to(target)
    problem = "m/2: model.onnx is a link that leaves the repository"
    assert scan(root) == ({"m": ("1", "3")}, (problem,), {})


def test_missing_repository(tmp_path: Path) -> None:
    """A directory that is not there is named without its path."""
    with pytest.raises(RepositoryMissing, match=r"^model repository 'none': No such file or directory$"):
        scan(tmp_path / "none")


def test_model_that_cannot_be_read_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that vanishes or refuses while it is read is told, and the others are served."""
    touch(tmp_path, "bad/1/model.onnx")
    touch(tmp_path, "good/1/model.onnx")
    listed = os.scandir

    def scandir(path: Path):  # type: ignore[no-untyped-def]
        if path.name == "bad":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = scan(tmp_path)
    assert (found.models, found.problems) == ({"good": ("1",)}, ("bad: Permission denied",))


def test_a_version_policy_that_asks_for_nothing_that_is_there_is_told(tmp_path: Path) -> None:
    """Else the model is just not loaded, and nobody says why."""
    touch(tmp_path, "m/1/model.onnx")
    (tmp_path / "m" / "config.pbtxt").write_text("version_policy { specific { versions: [9] } }")
    found = scan(tmp_path)
    assert found.chosen == {"m": ()}
    assert len(found.problems) == 1
    assert found.problems[0].startswith("m/config.pbtxt: version_policy asks for no version that is there")
