"""A trial server that ends while it is asked costs nobody a model."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from loaders import verdicts
from loaders.verdicts import Facts, Request, Trials, Verdict

LEAVING = "import os, time; os.close(1); os.read(0, 1); time.sleep(0.2)"
"""On its way out: says nothing any more, and still runs."""
ANSWERING = "import sys; sys.stdin.readline(); print(sys.argv[1], flush=True); sys.stdin.read()"


def test_one_that_is_on_its_way_out_is_not_asked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The idle time of the server ends in the moment of a request: a new one is started, and answers."""
    facts = Facts(
        tree_sha256="t", canonical_sha256="c", batchable=True, inline_allowed=True, warm_cost_ns={1: 1_000}
    )
    verdict = Verdict(model="m", version="1", at_s=0.0, facts=facts)
    scripts = [[LEAVING], [ANSWERING, msgspec.json.encode(verdict).decode()]]

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", *scripts.pop(0)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603

    monkeypatch.setattr(verdicts, "_start", start)
    trials = Trials(tmp_path)
    request = Request(
        root="r", model="m", version="1", providers=(), intra_op_threads=1, cpu_s=1.0, memory_bytes=0
    )
    try:
        assert trials.facts(request, ("t", ""), "identity", 1) == facts
        assert not scripts
    finally:
        trials.close()


def test_one_that_ends_for_idleness_leaves_no_zombie() -> None:
    """Nobody asks it any more, and it is gone all the same."""
    server = verdicts._start()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.close()
    server.stdout.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{server.pid}").exists():
        assert time.monotonic() < deadline, "the ended server was not waited for"
        time.sleep(0.01)
