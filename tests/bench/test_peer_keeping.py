"""A run that was cut goes on where it was, and measures anew what would be another figure."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bench.peers.keeping import FILE, Kept, digest, write_whole
from bench.peers.peer import Cell, Setting

CELL = Cell("mlp", "json", 1, True)


def test_what_was_kept_is_there_after_a_cut(tmp_path: Path) -> None:
    """Also when the last line was cut in its middle: that one counts as not there, and the file goes on after it."""
    kept = Kept(tmp_path)
    kept.put("round", "a", CELL)
    kept.put("round", "b", CELL)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-7])
    kept = Kept(tmp_path)
    assert kept.get("round", "a", Cell) == CELL
    assert kept.get("round", "b", Cell) is None
    kept.put("round", "c", CELL)
    again = Kept(tmp_path)
    assert again.get("round", "c", Cell) == CELL
    assert again.get("start", "c", Cell) is None


def test_a_line_of_another_shape_counts_as_not_there(tmp_path: Path) -> None:
    """What an older version kept is measured again."""
    Kept(tmp_path).put("round", "a", {"something": "else"})
    assert Kept(tmp_path).get("round", "a", Cell) is None


def test_whatever_a_figure_depends_on_is_in_its_key() -> None:
    """Same content, same key, in any order of a peer's further choices; another setting or version is another."""
    one = digest("x", Setting(1, True, {"a": "1", "b": "2"}), CELL, "1.0")
    assert one == digest("x", Setting(1, True, {"b": "2", "a": "1"}), CELL, "1.0")
    assert len({one, digest("x", Setting(2, True, {"a": "1", "b": "2"}), CELL, "1.0"),
                digest("x", Setting(1, True, {"a": "1", "b": "2"}), CELL, "1.1")}) == 3  # fmt: skip


def test_a_full_disk_leaves_a_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that took an hour to find are not cut by writing them again; nothing else is left beside them."""
    file = tmp_path / "settings.json"
    write_whole(file, b"old")

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as half:
            half.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            write_whole(file, b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"settings.json": b"old"}
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"


def test_what_is_written_whole_stays_what_it_was(tmp_path: Path) -> None:
    """A link to a page is still one, and whoever could read the page still can; a pipe is written, not replaced."""
    page, link = tmp_path / "page.md", tmp_path / "link.md"
    page.write_text("old")
    page.chmod(0o640)
    link.symlink_to(page)
    write_whole(link, b"new")
    assert (link.is_symlink(), page.read_bytes(), page.stat().st_mode & 0o777) == (True, b"new", 0o640)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, b"said")
        assert (os.read(reader, 10), pipe.is_fifo()) == (b"said", True)
    finally:
        os.close(reader)
