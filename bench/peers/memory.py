"""Memory: what a whole process tree holds; pages that its processes share count once.

Linux's PSS divides a page among all who map it, whoever they are: the bench runs from our environment and maps the same
libraries as our server, which would halve what they take of ours and of nobody else's. So pages of files count as often
as the tree needs them, which is once; what is private or shared memory is the tree's alone, and its PSS is right.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

Place = tuple[str, str, str]
"""Device, inode and offset of what a mapping shows of a file."""
_HEAD = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S{4} ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+)\s*(.*)$")
_SHARED = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV")
_OWN = ("Pss_Anon:", "Pss_Shmem:")


def tree_bytes(pids: Sequence[int]) -> int:
    """Memory of these processes. Cost: some milliseconds a process."""
    in_memory = devices_in_memory(Path("/proc/self/mountinfo").read_text())
    own_bytes, files = 0, dict[Place, int]()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            own_bytes += own(Path(f"/proc/{pid}/smaps_rollup").read_text())
            for place, size_bytes in mapped(Path(f"/proc/{pid}/smaps").read_text(), in_memory).items():
                files[place] = max(files.get(place, 0), size_bytes)
    return own_bytes + sum(files.values())


def own(rollup: str) -> int:
    """Bytes that are no file's, of /proc/PID/smaps_rollup."""
    return sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith(_OWN))


def mapped(smaps: str, in_memory: Collection[str]) -> dict[Place, int]:
    """Bytes of files that a process has in memory, by their place, of /proc/PID/smaps.

    Args:
        in_memory: devices whose files are shared memory: they count there.
    """
    found: dict[Place, int] = {}
    place: Place | None = None
    for line in smaps.splitlines():
        if head := _HEAD.match(line):
            offset, device, inode, path = head.groups()
            is_file = inode != "0" and device not in in_memory and not path.startswith(_SHARED)
            place = (device, inode, offset) if is_file else None
        elif place is not None and line.startswith(("Rss:", "Anonymous:")):
            # What was written to is the process's own by now.
            size_bytes = int(line.split()[1]) << 10
            found[place] = found.get(place, 0) + (size_bytes if line.startswith("Rss:") else -size_bytes)
    return found


def devices_in_memory(mountinfo: str) -> set[str]:
    """Devices of file systems that hold their files in memory, as smaps writes them."""
    found = set()
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("tmpfs "):
            major, minor = fields.split()[2].split(":")
            found.add(f"{int(major):02x}:{int(minor):02x}")
    return found
