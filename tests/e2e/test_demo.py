"""The demonstration ends right: a bad version is turned back before any label, a good one stays, nothing is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.flights.data import Flights

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (1, 2, 3)


def demonstrate(*options: str) -> dict[str, Any]:
    """Run it as `make demo` does; its counts."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.flights.demo", "--json", *options],
        cwd=ROOT,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


def check(counts: dict[str, Any]) -> None:
    """What every run has to end with."""
    assert counts["wrong"] == []
    assert counts["missing"] == 0
    assert counts["answered"] == counts["recorded"] > 10_000
    assert counts["decisions"] == 1
    assert set(counts["replayed"].values()) == {"the same"}


def test_the_demonstration_on_the_spool(flights_2013: Flights) -> None:
    """`make demo`: the faulty version is rolled back by the sidecar, its twin is not."""
    counts = demonstrate("--seed", "1")
    check(counts)
    assert counts["forwarded"] is None


@pytest.mark.prove
@pytest.mark.parametrize("kafka", [False, True], ids=["spool", "kafka"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_demonstration_ends_right_for_every_seed(
    seed: int, kafka: bool, flights_2013: Flights, kafka_jars: Path
) -> None:
    """For three seeds, each with another fault; with a broker the sidecar reads the topic, which holds everything."""
    counts = demonstrate("--seed", str(seed), *(["--kafka"] if kafka else []))
    check(counts)
    assert counts["forwarded"] == (counts["recorded"] if kafka else None)
    assert counts["replayed"].keys() == ({"spool", "topic"} if kafka else {"spool"})
