"""The thread budget: what may be used, and how it is divided."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway import config as configuration
from gateway.budget import effective_cpus, in_words, intra_op_threads
from loaders.memory import limit_bytes


def config(*settings: str):
    return configuration.load(overrides=settings, environ={})[0]


@pytest.mark.parametrize(
    ("cpus", "settings", "threads"),
    [
        (2, (), 1),
        (8, (), 7),
        (8, ("workers=2",), 3),
        (8, ("workers=2", "batch.lanes=2"), 1),
        (1.5, ("workers=4",), 1),
        (8, ("session.intra_op_threads=2", "workers=4"), 2),
    ],
)
def test_threads_of_all_sessions_fit_the_processors(cpus: float, settings, threads: int) -> None:
    """Each worker's loop has one; the rest is divided; what is configured holds."""
    assert intra_op_threads(config(*settings), cpus) == threads


def test_the_narrowest_group_counts(tmp_path: Path) -> None:
    """The quota of the own cgroup or of any above it; none is none, and what cannot be read is none."""
    own = tmp_path / "self"
    own.write_text("0::/a/b\n")
    root = tmp_path / "cgroup"
    (root / "a" / "b").mkdir(parents=True)
    have = float(len(os.sched_getaffinity(0)))
    assert effective_cpus(root, own) == have
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (root / "a" / "cpu.max").write_text("50000 100000\n")
    assert effective_cpus(root, own) == 0.5
    (root / "a" / "b" / "cpu.max").write_text("25000 100000\n")
    assert effective_cpus(root, own) == 0.25
    (root / "a" / "b" / "cpu.max").write_text("nonsense")
    assert effective_cpus(root, tmp_path / "absent") == have


def test_the_quota_of_version_1_counts_too(tmp_path: Path) -> None:
    """On hosts that mount the processors' controller by itself; -1 is no quota."""
    own = tmp_path / "self"
    own.write_text("3:cpu,cpuacct:/a/b\n0::/\n")
    group = tmp_path / "cgroup" / "cpu" / "a" / "b"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert effective_cpus(tmp_path / "cgroup", own) == len(os.sched_getaffinity(0))
    (group.parent / "cpu.cfs_quota_us").write_text("50000\n")
    (group.parent / "cpu.cfs_period_us").write_text("100000\n")
    assert effective_cpus(tmp_path / "cgroup", own) == 0.5


def test_memory_of_a_group_above_counts(tmp_path: Path) -> None:
    """A slice, or a pod, may have the limit that the process's own group has not."""
    own = tmp_path / "self"
    own.write_text("0::/slice/service\n")
    service = tmp_path / "slice" / "service"
    service.mkdir(parents=True)
    (service / "memory.max").write_text("max\n")
    (service.parent / "memory.max").write_text("1000000\n")
    assert limit_bytes(tmp_path, own) == 1_000_000
    own.write_text("4:memory:/slice/service\n")
    (tmp_path / "memory" / "slice" / "service").mkdir(parents=True)
    (tmp_path / "memory" / "slice" / "memory.limit_in_bytes").write_text("2000000\n")
    assert limit_bytes(tmp_path, own) == 2_000_000


def test_the_sum_is_said(tmp_path: Path) -> None:
    """In words, with a warning where more threads than processors were asked for."""
    assert (
        in_words(config(), 2) == "threads: 1 workers x (1 loop + 1 lanes x 1 of a run) = 2, on 2 processors"
    )
    assert "will share" in in_words(config("session.intra_op_threads=8"), 2)
