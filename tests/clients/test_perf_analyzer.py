"""perf_analyzer, the load generator of Triton's makers, as they built it: to its end, against two workers.

It reads metadata, configuration and statistics, and gives up where the statistics of its window do not advance. Its
binary is in an older wheel of tritonclient; it needs two libraries that this wheel does not carry.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from bench.serving import Gateway
from gateway.audit.event import Prediction
from gateway.audit.spool_feed import SpoolFeed
from tests.clients import wheels
from tests.e2e.wire import Wire, get

REQUESTS, CONNECTIONS = 400, 4
ATTEMPTS, IDLE_LOOKS, RUN_TIMEOUT_S = 5, 10, 120
LIBB64 = "libb64.so.0d"


def libb64() -> Path:
    """The library of Debian's package libb64-0d: installed, or fetched with apt; skips where neither works."""
    for directory in Path("/usr/lib").glob("*-linux-gnu"):
        if (directory / LIBB64).exists():
            return directory / LIBB64
    kept = wheels.cache_directory("libb64-0d") / LIBB64
    if not kept.exists():
        get_it = "install it to run perf_analyzer (Debian: libb64-0d)"
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            pytest.skip(f"{LIBB64} is not here: {get_it}")
        with tempfile.TemporaryDirectory(prefix="tidegate-fetch-") as scratch:
            command = ["apt-get", "download", "-qq", "libb64-0d"]
            done = subprocess.run(command, cwd=scratch, capture_output=True, timeout=60, check=False)
            packages = list(Path(scratch).glob("*.deb"))
            if not packages:
                said = done.stderr.decode(errors="replace").strip()[-200:]
                pytest.skip(f"{LIBB64} is not here and cannot be fetched: {said}; {get_it}")
            subprocess.run(["dpkg-deb", "-x", str(packages[0]), scratch], timeout=60, check=True)
            wheels.place(kept, next(Path(scratch).rglob(LIBB64)).read_bytes())
    return kept


@pytest.fixture(scope="module")
def analyzer() -> tuple[Path, dict[str, str]]:
    """The binary and its environment."""
    if platform.machine() != "x86_64":
        pytest.skip(f"perf_analyzer is built for x86_64 alone, not for {platform.machine()}")
    binary = wheels.file_of(wheels.PERF_ANALYZER)
    binary.chmod(0o755)
    libraries = {libb64().parent, wheels.file_of(wheels.CUDA_RUNTIME).parent}
    return binary, {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, sorted(libraries)))}


def counted(gateway: Gateway) -> tuple[int, int]:
    """Inferences and successes of the model, as whoever answers tells them."""
    with Wire(gateway.data_url) as wire:
        (entry,) = json.loads(wire.exchange(get("/v2/models/simple/stats")).body)["model_stats"]
    return entry["inference_count"], entry["inference_stats"]["success"]["count"]


class Answered:
    """Predictions in the log, read on from where the last look ended.

    Args:
        gateway: whose spool is read.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._feed = SpoolFeed(gateway.state_dir / "spool")
        self._count = 0

    def count(self) -> int:
        """As many as there are now."""
        while events := self._feed.read(100_000, 500).events:
            predictions = (event for event in events if isinstance(event, Prediction))
            self._count += sum(event.kind == "done" and event.model.name == "simple" for event in predictions)
        return self._count


def run(gateway: Gateway, analyzer: tuple[Path, dict[str, str]], *options: str) -> str:
    """What it says when it is done; it must come to its end."""
    binary, environ = analyzer
    address = gateway.data_url.removeprefix("http://")
    done = subprocess.run(
        [str(binary), "-m", "simple", "-u", address, "-i", "http", *options],
        env=environ, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[:2000] + done.stderr[:2000]
    return done.stdout


def run_count(
    gateway: Gateway, analyzer: tuple[Path, dict[str, str]], *options: str
) -> tuple[tuple[int, int], str]:
    """So many requests, then its end: what was counted before, and what it says.

    On a busy machine it sometimes waits for ever for requests that it has the answers of: each of them stands in the
    statistics, and those of its threads that ask are gone, which they are when they have no answer to wait for. Only
    then it may try again.
    """
    binary, environ = analyzer
    address = gateway.data_url.removeprefix("http://")
    command = [str(binary), "-m", "simple", "-u", address, "-i", "http", "--request-count", str(REQUESTS)]
    for _ in range(ATTEMPTS):
        before = counted(gateway)
        with tempfile.TemporaryFile("w+") as said:
            started = subprocess.Popen([*command, *options], env=environ, stdout=said, stderr=said)
            try:
                ended = _ends(started, gateway, before[0] + REQUESTS)
            finally:
                started.kill()
                started.wait(10)
            said.seek(0)
            text = said.read()
        if ended:
            assert started.returncode == 0, text[:4000]
            return before, text
    pytest.fail(f"it came to no end {ATTEMPTS} times")


def _ends(started: subprocess.Popen[str], gateway: Gateway, expected: int) -> bool:
    """Whether it ends by itself; False: it hangs, with no thread that waits for an answer, and all are counted."""
    idle = 0
    for _ in range(RUN_TIMEOUT_S):
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(1)
            return True
        alone = len(list(Path(f"/proc/{started.pid}/task").iterdir())) == 1
        idle = idle + 1 if alone and counted(gateway)[0] == expected else 0
        if idle == IDLE_LOOKS:
            return False
    pytest.fail(f"it did not end within {RUN_TIMEOUT_S} s; counted {counted(gateway)[0]} of {expected}")


def agree(gateway: Gateway, before: tuple[int, int], seen: int, others: int | None = None) -> None:
    """The statistics advanced by what the client saw and what it did not wait for (None: nobody knows how much that
    is), and the log holds as many."""
    answered = Answered(gateway)
    deadline = time.monotonic() + 60
    while (logged := answered.count()) != (after := counted(gateway))[0] or after[1] != logged:
        assert time.monotonic() < deadline, (after, logged)
    assert after[0] - before[0] >= seen > 0
    assert others is None or after[0] - before[0] == seen + others


@pytest.mark.parametrize("form", ["binary", "json"])
def test_it_comes_to_its_end(
    gateway: Gateway, analyzer: tuple[Path, dict[str, str]], tmp_path: Path, form: str
) -> None:
    """The server's counts are the client's, and each answer that it saw is in the log."""
    table, export = tmp_path / "out.csv", tmp_path / "export.json"
    before, said = run_count(
        gateway, analyzer, "--concurrency-range", str(CONNECTIONS),
        "--input-tensor-format", form, "--output-tensor-format", form,
        "-f", str(table), "--profile-export-file", str(export),
    )  # fmt: skip
    # What it reads of the statistics may lack those of the last tick; `agree` waits for them.
    for what in ("Inference count", "Successful request count"):
        (count,) = re.findall(rf"{what}: (\d+)", said)
        assert 0 < int(count) <= REQUESTS, said
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert all(int(row[f"Server Compute {what}"]) > 0 for what in ("Input", "Infer", "Output")), row
    exported = json.loads(export.read_text())["experiments"]
    seen = sum(len(experiment["requests"]) for experiment in exported)
    assert seen == REQUESTS
    agree(gateway, before, seen, others=0)


@pytest.mark.prove
@pytest.mark.parametrize(
    "load", [("--concurrency-range", "1:4"), ("--request-rate-range", "100:300:100")], ids=["closed", "open"]
)
def test_it_measures_window_after_window(
    gateway: Gateway, analyzer: tuple[Path, dict[str, str]], tmp_path: Path, load: tuple[str, str]
) -> None:
    """Closed loop and Poisson arrivals, several levels: statistics advance in every window, whoever is asked."""
    before = counted(gateway)
    table = tmp_path / "out.csv"
    said = run(
        gateway, analyzer, *load, "--request-distribution", "poisson", "--measurement-interval", "1000",
        "--stability-percentage", "999", "-f", str(table),
    )  # fmt: skip
    counts = [int(count) for count in re.findall(r"Successful request count: (\d+)", said)]
    assert len(counts) == len(list(csv.DictReader(table.read_text().splitlines()))) >= 3
    assert all(counts), said
    agree(gateway, before, sum(counts))
