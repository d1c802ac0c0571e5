"""The flights example against a gateway of real processes: its golden requests, its rows, its sender."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.serving import Gateway, call
from examples.flights import build
from examples.flights.data import Flights
from examples.flights.replay import Answered, Plan, Replay
from loaders.session import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("version", ["1", "2"])
def test_golden_requests_are_answered(examples: Gateway, version: str) -> None:
    """Sent as they stand, each golden request gets the answer that stands beside it."""
    for line in (build.SERVED / version / "golden.jsonl").read_text().splitlines():
        golden = json.loads(line)
        request = {"id": golden["id"], "inputs": golden["inputs"]}
        reply = call(examples.data_url, "POST", f"/v2/models/flights/versions/{version}/infer", request)
        assert reply.status == 200, reply.content
        for found, expected in zip(reply.content["outputs"], golden["outputs"], strict=True):
            assert {**found, "data": 0} == {**expected, "data": 0}
            assert found["data"] == pytest.approx(expected["data"], abs=golden["atol"], rel=golden["rtol"])


def test_replayed_flights_get_the_models_answers(examples: Gateway, few_flights: Flights) -> None:
    """Every row that the sender sends comes back with the probabilities of version 2, which serves."""
    told: list[Answered] = []
    replay = Replay(few_flights, Plan(examples.data_url, labels=False), on_answer=told.append)
    counters = asyncio.run(replay.run())
    assert (counters.sent, counters.answered) == (2000, 2000)
    assert len({each.prediction_id for each in told}) == 2000
    expected = build.probabilities(load(build.SERVED.parent, "flights", "2"), few_flights.rows)
    for each in told:
        reply = json.loads(each.body)
        assert (reply["model_version"], reply["id"]) == ("2", f"flight-{each.index}")
        assert np.allclose(reply["outputs"][1]["data"], expected[each.index], atol=1e-6)


def test_the_sender_as_a_command(examples: Gateway, flights_2013: Flights, tmp_path: Path) -> None:  # noqa: ARG001
    """A day is replayed: 842 flights on New Year's Day, all answered, each id in the ledger once; 831 labels."""
    ledger = tmp_path / "ledger"
    done = subprocess.run(
        [sys.executable, "-m", "examples.flights.send", "--url", examples.data_url, "--from", "2013-01-01",
         "--to", "2013-01-02", "--ledger", str(ledger), "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["sent"], summary["answered"], summary["unknown"]) == (842, 842, 0)
    assert (summary["labels_sent"], summary["labels_unknown"]) == (831, 0)
    assert len(set(ledger.read_text().split())) == 842


def test_the_sender_finds_nobody(flights_2013: Flights) -> None:  # noqa: ARG001
    """An address where nobody listens: one line, exit 3."""
    with socket.socket() as bound:
        # Bound and not listening: nobody else can have it meanwhile.
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "examples.flights.send", "--url", url, "--to", "2013-07-02",
             "--connect-for", "0.2"],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert "nobody answers at" in done.stderr
