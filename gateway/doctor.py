"""What this machine has of what Tidegate, its tests and its benchmarks can use. For `tidegate doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from loaders.confine import gaps, landlock_abi

_PACKAGES = (
    "starlette", "uvicorn", "httptools", "uvloop", "onnxruntime", "numpy", "msgspec", "orjson", "aiokafka",
    "cramjam", "prometheus-client", "click", "rich", "httpx",
)  # fmt: skip
_TOOLS = (
    ("java", "Kafka in tests and `make kafka`", "a Java 17 runtime, for example openjdk-17-jre-headless"),
    ("mvn", "fetches Kafka's jars once", "the package maven"),
    ("docker", "another way to Kafka", "optional"),
    ("kcat", "an independent reader of the topic", "the package kcat"),
    ("openssl", "certificates of tests", "the package openssl"),
    ("strace", "proofs: what processes connect to, kills and errors at system calls", "the package strace"),
    ("nginx", "the partner of the benchmark, and deploy/nginx.conf in tests", "the package nginx-light"),
    ("haproxy", "deploy/haproxy.cfg in tests", "the package haproxy"),
    ("wrk", "the load of the benchmark", "the package wrk"),
    ("chromium", "tests of the console", "the package chromium"),
)
SHM_MIN_BYTES = 64 * 1024 * 1024
DISK_MIN_BYTES = 1024 * 1024 * 1024


class Check(NamedTuple):
    """One line of the table; `required` ones make `tidegate doctor` exit with 1 when they fail."""

    name: str
    ok: bool
    found: str
    how_to_get: str
    required: bool = False


def checks() -> list[Check]:
    """Look at everything. Runs no program."""
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] <= (3, 14)
    out = [Check("python", fits, version, "Python 3.11 to 3.14", required=True)]
    for name in _PACKAGES:
        try:
            out.append(Check(name, True, importlib.metadata.version(name), "", required=True))
        except importlib.metadata.PackageNotFoundError:
            out.append(Check(name, False, "not installed", "make run", required=True))
    out += [_shared_memory(), _disk(), _sandbox()]
    for name, what, how in _TOOLS:
        # Servers stand where a plain user's search path does not look.
        where = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        out.append(Check(name, where is not None, what if where else "not found", how))
    return out


def _sandbox() -> Check:
    """What a stranger's model can do in its trial."""
    found = gaps()
    version = landlock_abi()
    fence = f"Landlock version {version}" if version else "no Landlock"
    if not found:
        return Check("sandbox of trials", True, f"{fence}: no file, no network, no signal", "")
    return Check("sandbox of trials", False, f"{fence}: no file, no network", "; ".join(found))


def _disk() -> Check:
    """Room for the log, where a state directory would be made."""
    stat = os.statvfs(".")
    free = stat.f_bavail * stat.f_frsize
    how = "free room, put state_dir elsewhere, or lower audit.max_bytes (default: 20 GiB, or a fifth of the disk)"
    return Check("room for the log", free >= DISK_MIN_BYTES, f"{free >> 20} MiB free here", how)


def _shared_memory() -> Check:
    shm = Path("/dev/shm")  # noqa: S108
    how = 'give the container more (--shm-size=256m) or set audit.ring = "state_dir"'
    if not shm.is_dir():
        return Check("shared memory", False, "no /dev/shm", how, required=True)
    stat = os.statvfs(shm)
    free = stat.f_bavail * stat.f_frsize
    return Check("shared memory", free >= SHM_MIN_BYTES, f"{free >> 20} MiB free", how, required=True)
