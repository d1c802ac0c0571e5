"""Versions that are still being copied wait; failed ones that were mended are loaded again."""

from __future__ import annotations

import os
from pathlib import Path

from gateway.control.settling import Settling

KEY = ("m", "1")


def write(root: Path, name: str, content: bytes) -> None:
    """A file of the version."""
    path = root / "m" / "1" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_settled_is_the_same_twice(tmp_path: Path) -> None:
    """A file that grows between two looks is not whole."""
    settling = Settling(tmp_path)
    write(tmp_path, "model.onnx", b"a")
    assert settling.settled([KEY]) == set()
    write(tmp_path, "model.onnx", b"ab")
    assert settling.settled([KEY]) == set()
    assert settling.settled([KEY]) == {KEY}
    os.utime(tmp_path / "m" / "1" / "model.onnx", ns=(1, 1))
    assert settling.settled([KEY]) == set()


def test_marker_says_that_it_is_whole(tmp_path: Path) -> None:
    """Who writes `.complete` last need not wait."""
    settling = Settling(tmp_path)
    write(tmp_path, "model.onnx", b"a")
    write(tmp_path, ".complete", b"")
    assert settling.settled([KEY]) == {KEY}


def test_mended_once_for_each_change(tmp_path: Path) -> None:
    """A failed version is asked for again when its files are others, and settled; and not again for the same."""
    settling = Settling(tmp_path)
    write(tmp_path, "model.onnx", b"broken")
    assert [settling.mended([KEY]) for _ in range(3)] == [[], [], []]
    write(tmp_path, "model.onnx", b"mended!")
    assert [settling.mended([KEY]) for _ in range(3)] == [[], [KEY], []]
    assert settling.mended([]) == []
    assert [settling.mended([KEY]) for _ in range(2)] == [[], []]
