"""How much memory there is: the least of what the host, the container and the groups above it give."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.memory import limit_bytes

MB = 1 << 20


def written(path: Path, text: str) -> None:
    """A file of the hierarchy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({"a/b": "64", "a": "max"}, 64),
        ({"a/b": "max", "a": "32"}, 32),
        ({"a/b": "64", "a": "32"}, 32),
        ({"": "16"}, 16),
    ],
)
def test_the_least_of_all_groups_counts(tmp_path: Path, limits: dict[str, str], found: int) -> None:
    """The process's own group, those above it, and in a container the root that it sees."""
    written(tmp_path / "membership", "0::/a/b\n")
    for group, text in limits.items():
        amount = text if text == "max" else str(int(text) * MB)
        written(tmp_path / "cgroup" / group / "memory.max", amount + "\n")
    assert limit_bytes(tmp_path / "cgroup", tmp_path / "membership") == found * MB


def test_the_first_hierarchy_is_read_too(tmp_path: Path) -> None:
    """cgroup v1 has the controller in a directory of its own."""
    written(tmp_path / "membership", "4:cpu:/x\n3:memory:/x\n")
    written(tmp_path / "cgroup" / "memory" / "x" / "memory.limit_in_bytes", str(48 * MB))
    assert limit_bytes(tmp_path / "cgroup", tmp_path / "membership") == 48 * MB
