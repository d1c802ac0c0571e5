"""Exposition: a product's metrics, wherever it offers them.

Every port that a process of the server listens on is asked for /metrics: nobody has to know a product's own address
for them.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from bench.peers.probes.line import Line

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{[^\n]*\})?\s+(\S+)", re.MULTILINE)
_LISTENS = "0A"


def samples_of(text: str) -> dict[str, float]:
    """Every sample of an exposition in Prometheus's text form, by its name and labels as they are written."""
    found: dict[str, float] = {}
    for name, labels, value in _SAMPLE.findall(text):
        with contextlib.suppress(ValueError):
            found[name + labels] = float(value)
    return found


def samples(url: str, pids: Iterable[int], metrics_url: str = "") -> dict[str, float]:
    """All samples of all /metrics pages of a server; empty when it has none.

    Args:
        url: where it answers predictions.
        pids: its processes.
        metrics_url: what its adapter knows besides, as a whole address.
    """
    found: dict[str, float] = {}
    for page, path in _pages(url, pids, metrics_url):
        with contextlib.suppress(OSError), Line(page, 5) as line:
            reply = line.request("GET", path)
            if reply.status == 200:
                found.update(samples_of(reply.body.decode(errors="replace")))
    return found


def rose_by(before: dict[str, float], after: dict[str, float], count: int) -> list[str]:
    """Samples that rose by exactly `count`."""
    return [name for name, value in after.items() if math.isclose(value - before.get(name, 0.0), count)]


def ports_of(pids: Iterable[int]) -> list[int]:
    """TCP ports that these processes listen on, lowest first."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(entry.readlink())
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and fields[9] in inodes:
                    found.add(int(fields[1].rpartition(":")[2], 16))
    return sorted(found)


def _pages(url: str, pids: Iterable[int], metrics_url: str) -> list[tuple[str, str]]:
    pages = []
    if metrics_url:
        parts = urlsplit(metrics_url)
        pages.append((f"http://{parts.netloc}", parts.path or "/metrics"))
    ports = dict.fromkeys([urlsplit(url).port, *ports_of(pids)])
    pages += [(f"http://127.0.0.1:{port}", "/metrics") for port in ports if port is not None]
    return list(dict.fromkeys(pages))
