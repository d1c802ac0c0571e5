"""A disk in memory that forgets at a power loss what it was not told to keep.

What a process sees is what it wrote. What is left after a power loss is drawn, by `survivors`:

* of a file, since its last sync: each sector of 512 bytes as it was after any of the writes, and any of the sizes
* of a directory, since its last sync: each name made, removed or renamed, or not
* of a mapped word: any value since its last sync

A sync that fails drops what it should have kept, as Linux does: what the process reads stays, the disk's share is gone.
Rings are real files in memory, only their names and ages are simulated: see `Rings`.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.audit.storage import DISK, Disk, Entry, FileFacts

SECTOR_BYTES = 512
Tree = dict[str, "bytes | Tree"]
"""Files and directories."""


class File:
    """Content as it is seen, as it surely is on disk, and what was done between."""

    def __init__(self, content: bytes = b"") -> None:
        self.seen = bytearray(content)
        self.kept = bytearray(content)
        self.pending: list[tuple[int, bytes] | int] = []
        """Writes (offset, bytes) and sizes cut to."""

    def write(self, offset: int, data: bytes) -> None:
        """In the page cache."""
        self.pending.append((offset, data))
        _apply(self.seen, self.pending[-1])

    def truncate(self, size_bytes: int) -> None:
        """In the page cache."""
        self.pending.append(size_bytes)
        _apply(self.seen, size_bytes)

    def sync(self) -> None:
        """On disk."""
        for change in self.pending:
            _apply(self.kept, change)
        self.pending.clear()

    def survivor(self, rng: random.Random) -> bytes:
        """What a power loss may leave."""
        if not self.pending:
            return bytes(self.kept)
        versions = [bytes(self.kept)]
        for change in self.pending:
            content = bytearray(versions[-1])
            _apply(content, change)
            versions.append(bytes(content))
        size = len(rng.choice(versions))
        mood = rng.randrange(3)
        out = bytearray(size)
        for at in range(0, size, SECTOR_BYTES):
            version = versions[-1] if mood == 0 else rng.choice(versions)
            piece = version[at : min(at + SECTOR_BYTES, size)]
            out[at : at + len(piece)] = piece
        return bytes(out)


class Directory:
    """Names as they are seen, as they surely are on disk, and what was done between."""

    def __init__(self) -> None:
        self.seen: dict[str, File | Directory] = {}
        self.kept: dict[str, File | Directory] = {}
        self.pending: list[dict[str, File | Directory | None]] = []

    def change(self, names: dict[str, File | Directory | None]) -> None:
        """One step: made, removed, or both (renamed)."""
        self.pending.append(names)
        _rename(self.seen, names)

    def sync(self) -> None:
        """On disk."""
        for names in self.pending:
            _rename(self.kept, names)
        self.pending.clear()

    def survivor(self, rng: random.Random) -> Tree:
        """What a power loss may leave."""
        left = dict(self.kept)
        for names in self.pending:
            if rng.random() < 0.5:
                _rename(left, names)
        return {name: node.survivor(rng) for name, node in left.items()}


def _apply(content: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        del content[change:]
        content.extend(bytes(change - len(content)))
        return
    offset, data = change
    content.extend(bytes(max(offset - len(content), 0)))
    content[offset : offset + len(data)] = data


def _seen(directory: Directory) -> Tree:
    return {
        name: bytes(node.seen) if isinstance(node, File) else _seen(node)
        for name, node in directory.seen.items()
    }


def _rename(names: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, node in changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Word:
    """A mapped word: each store is seen at once, and on disk at some time."""

    def __init__(self, disk: SimulatedDisk, file: File) -> None:
        self._disk, self._file = disk, file

    def __getitem__(self, _: int) -> int:
        return int.from_bytes(self._file.seen[:8], "little")

    def __setitem__(self, _: int, value: int) -> None:
        self._disk.step()
        self._file.write(0, value.to_bytes(8, "little"))


class SimulatedDisk(Disk):
    """A `Storage`; paths under `rings` are the real ones.

    Args:
        root: everything below is here; the directory itself is there for good.
        before_each: called before each change; may raise.
    """

    def __init__(self, root: Path, rings: Path, tree: Tree | None = None) -> None:
        self.root, self.rings = root, rings
        self._prefix_chars = len(str(root)) + 1
        self.top = Directory()
        self.before_each: Callable[[], None] = lambda: None
        self.refused = ""
        """A call that fails: `sync`, `write`, `short`, `sync_directory`, `rename`."""
        self.gone: dict[str, bytes] = {}
        """Rings that were removed and might come back."""
        self._open: dict[int, File] = {}
        self._next_fd = 10_000
        self._fill(self.top, tree or {})
        self.clock_ns = 10**18

    def step(self) -> None:
        """A point where the power may go."""
        self.clock_ns += 1000
        self.before_each()

    def survivors(self, rng: random.Random) -> Tree:
        """What a power loss now may leave."""
        return self.top.survivor(rng)

    def standing(self) -> Tree:
        """What is seen now: what a kill leaves."""
        return _seen(self.top)

    def _fill(self, directory: Directory, tree: Tree) -> None:
        for name, found in tree.items():
            node: File | Directory = File(found) if isinstance(found, bytes) else Directory()
            if isinstance(found, dict) and isinstance(node, Directory):
                self._fill(node, found)
            directory.seen[name] = directory.kept[name] = node

    def _parts(self, path: Path) -> list[str]:
        # Asked all the time; `relative_to` takes half of a run.
        below = str(path)[self._prefix_chars :]
        return below.split("/") if below else []

    def _node(self, path: Path) -> File | Directory:
        node: File | Directory = self.top
        for part in self._parts(path):
            if not isinstance(node, Directory) or part not in node.seen:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            node = node.seen[part]
        return node

    def _directory(self, path: Path) -> Directory:
        node = self._node(path)
        assert isinstance(node, Directory), path
        return node

    def _file(self, path: Path) -> File:
        node = self._node(path)
        assert isinstance(node, File), path
        return node

    def _descriptor(self, file: File) -> int:
        self._next_fd += 1
        self._open[self._next_fd] = file
        return self._next_fd

    def _refuse(self, call: str) -> None:
        if self.refused == call:
            raise OSError(errno.EIO, f"{call} refused")

    def create(self, path: Path, *, exclusive: bool = False) -> int:
        self.step()
        parent = self._directory(path.parent)
        found = parent.seen.get(path.name)
        if found is not None and exclusive:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        if isinstance(found, File):
            found.truncate(0)
            return self._descriptor(found)
        made = File()
        parent.change({path.name: made})
        return self._descriptor(made)

    def open(self, path: Path, *, write: bool = False) -> int:
        return self._descriptor(self._file(path))

    def close(self, fd: int) -> None:
        del self._open[fd]

    def write(self, fd: int, data: memoryview) -> int:
        self.step()
        self._refuse("write")
        file = self._open[fd]
        taken = bytes(data[: len(data) // 2 if self.refused == "short" else len(data)])
        file.write(len(file.seen), taken)
        return len(taken)

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        return bytes(self._open[fd].seen[offset : offset + size_bytes])

    def content(self, path: Path) -> bytes:
        return bytes(self._file(path).seen)

    def size(self, fd: int) -> int:
        return len(self._open[fd].seen)

    def truncate(self, fd: int, size_bytes: int) -> None:
        self.step()
        self._open[fd].truncate(size_bytes)

    def sync(self, fd: int) -> None:
        self.step()
        if self.refused == "sync":
            # What is seen stays, and no later sync will bring it to the disk.
            self._open[fd].pending.clear()
        self._refuse("sync")
        self._open[fd].sync()

    def map_word(self, path: Path) -> memoryview:
        self.step()
        parent = self._directory(path.parent)
        if path.name not in parent.seen:
            parent.change({path.name: File()})
        file = self._file(path)
        if len(file.seen) < 8:
            file.write(0, bytes(8))
            file.sync()
        return Word(self, file)  # type: ignore[return-value]

    def unmap(self, word: memoryview) -> None:
        pass

    def entries(self, directory: Path) -> list[Entry]:
        seen = self._directory(directory).seen
        return [Entry(name, isinstance(node, Directory)) for name, node in seen.items()]

    def facts(self, path: Path) -> FileFacts:
        return FileFacts(len(self._file(path).seen), self.clock_ns)

    def make_directory(self, path: Path) -> None:
        self.step()
        node = self.top
        for part in self._parts(path):
            if part not in node.seen:
                node.change({part: Directory()})
            following = node.seen[part]
            assert isinstance(following, Directory)
            node = following

    def unlink(self, path: Path) -> None:
        self.step()
        if path.parent == self.rings:
            if path.exists():
                self.gone[path.name] = path.read_bytes()
            return DISK.unlink(path)
        parent = self._directory(path.parent)
        if path.name in parent.seen:
            parent.change({path.name: None})
        return None

    def remove_tree(self, path: Path) -> None:
        directory = self._directory(path)
        for name, is_directory in self.entries(path):
            if is_directory:
                self.remove_tree(path / name)
            else:
                self.step()
                directory.change({name: None})
        self.step()
        self._directory(path.parent).change({path.name: None})

    def rename(self, path: Path, to: Path) -> None:
        self.step()
        self._refuse("rename")
        if path.parent == self.rings:
            return os.rename(path, to)
        self._directory(path.parent).change({path.name: None, to.name: self._node(path)})
        return None

    def sync_directory(self, path: Path) -> None:
        self.step()
        self._refuse("sync_directory")
        if path == self.rings:
            self.gone.clear()
            return
        self._directory(path).sync()
