"""Memory of a whole product: pages that its processes share count once, whoever else has them."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.peers.memory import devices_in_memory, mapped, own, tree_bytes

ROLLUP = (
    "55d5-7fff ---p 00000000 00:00 0 [rollup]\nRss: 90 kB\nPss: 50 kB\nPss_Anon: 20 kB\nPss_Shmem: 4 kB\n"
)
SMAPS = """\
7f00-7f01 r--p 00000000 fe:00 247278                     /usr/lib/libthing.so
Rss:                  40 kB
Pss:                  20 kB
Anonymous:             8 kB
VmFlags: rd mr mw me
7f01-7f02 r--p 00008000 fe:00 247278                     /usr/lib/libthing.so
Rss:                   4 kB
Anonymous:             0 kB
7f02-7f03 rw-s 00000000 00:17 9                          /dev/shm/ring
Rss:                 400 kB
Anonymous:             0 kB
7f03-7f04 rw-s 00000000 00:01 10                         /memfd:ring (deleted)
Rss:                 400 kB
Anonymous:             0 kB
7f04-7f05 rw-s 00000000 00:1b 11                         /run/ring
Rss:                 400 kB
Anonymous:             0 kB
7f05-7f06 rw-p 00000000 00:00 0                          [heap]
Rss:                 500 kB
Anonymous:           500 kB
"""
MOUNTS = "24 27 0:27 / /run rw,nosuid - tmpfs tmpfs rw\n25 27 254:0 / / rw - ext4 /dev/vda rw\n"


def test_what_is_no_files_counts_by_its_share() -> None:
    """Private and shared memory: nobody outside the tree has a page of it."""
    assert own(ROLLUP) == 24 << 10


def test_pages_of_files_count_by_their_place_without_what_was_written_to() -> None:
    """Shared memory is counted already, under whichever name it goes; the heap is no file."""
    found = mapped(SMAPS, devices_in_memory(MOUNTS))
    assert list(found.values()) == [32 << 10, 4 << 10]
    assert set(found) == {("fe:00", "247278", "00000000"), ("fe:00", "247278", "00008000")}


def test_a_file_that_others_map_counts_whole_and_once() -> None:
    """Two processes of a tree have a library's pages, and this one, too: its size, not twice that, nor a third."""
    file = next(Path(np.__file__).parent.glob("_core/_multiarray_umath*.so"))
    size_bytes = file.stat().st_size
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    seen = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "if len(sys.argv) > 2: sum(seen[::4096])\n"
        "print('there', flush=True)\nsys.stdin.read()\n"
    )

    def started(*more: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(file), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        return process

    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mine:
        assert mine[::4096]
        touching, again, beside = started("touch"), started("touch"), started()
        try:
            one, two = tree_bytes([touching.pid]), tree_bytes([touching.pid, again.pid])
            bare = tree_bytes([beside.pid])
        finally:
            for process in (touching, again, beside):
                process.communicate()
    assert one - bare > 0.9 * size_bytes
    assert two - one < 0.9 * size_bytes
