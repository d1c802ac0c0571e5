"""Inputs held against a reference, over real processes: flagged or refused, for readers of the log, in /metrics."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from bench.serving import Gateway, Reply, call
from examples.flights import build
from gateway.audit.event import Prediction, Shadow, Verdict
from gateway.audit.spool_feed import SpoolFeed
from gateway.cli import command

ROW = [17, 4, 1, 4, 23, 1069, 39.2, 28.4, 65.2, 12.7, 0, 1011.3, 10]
ODD = [17, 4, 1, 99, 23, 1069, 399.2, 28.4, None, 12.7, 0, None, 10]
"""A carrier that is none, a day too hot, no humidity; that pressure is missing is nothing new."""
FLAGS = ["range:temp", "missing:humid", "unknown_category:carrier"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """flights twice: version 1 flags what is out of its reference, version 2, beside it as a shadow, refuses it."""
    place = tmp_path_factory.mktemp("policies")
    for version, policy in (("1", "flag"), ("2", "reject")):
        directory = place / "models" / "flights" / version
        shutil.copytree(build.SERVED / "2", directory)
        text = (directory / "bundle.toml").read_text()
        (directory / "bundle.toml").write_text(
            text.replace("[inputs.X]\n", f'[inputs.X]\npolicy = "{policy}"\n')
        )
    gateway = Gateway(place / "models", place / "state", settings=("sidecar.tick_s=0.5",))
    try:
        gateway.start(60)
        variants = [
            {"name": "primary", "version": "1", "role": "primary", "weight_bp": 10_000},
            {"name": "beside", "version": "2", "role": "shadow", "sample_bp": 10_000},
        ]
        revision = gateway.admin("GET", "routes/flights").content["revision"]
        body = {"variants": variants, "reason": "to see both"}
        assert gateway.admin("PUT", "routes/flights", body, revision=revision).status == 200
        yield gateway
        assert gateway.stop() == 0, gateway.said()
    finally:
        gateway.kill9_all()


def ask(gateway: Gateway, *rows: list[float | None], version: str = "") -> Reply:
    """One request, routed or to a version."""
    flat = [value for row in rows for value in row]
    tensor = {"name": "X", "datatype": "FP32", "shape": [len(rows), 13], "data": flat}
    path = f"/v2/models/flights{version and '/versions/'}{version}/infer"
    return call(gateway.data_url, "POST", path, {"inputs": [tensor]})


def tidegate(gateway: Gateway, *args: str) -> str:
    """What a command prints, on this gateway's state."""
    done = CliRunner().invoke(command, [*args, "--state-dir", str(gateway.state_dir)])
    assert done.exit_code == 0, done.output
    return done.output


def events(gateway: Gateway, kind: type) -> list[Any]:
    """The log's events of a kind."""
    found = SpoolFeed(gateway.state_dir / "spool").read(100_000, 0).events
    return [event for event in found if isinstance(event, kind)]


def test_flagged_requests_are_answered_and_marked(gateway: Gateway) -> None:
    """The answer is as ever; its record carries the flags, in `audit get` and `audit tail` alike."""
    plain, odd = ask(gateway, ROW), ask(gateway, ROW, ODD)
    assert (plain.status, odd.status) == (200, 200)
    records = [
        json.loads(tidegate(gateway, "audit", "get", reply.headers["x-prediction-id"], "--json"))
        for reply in (plain, odd)
    ]
    assert records[0]["flags"] == []
    assert sorted(records[1]["flags"]) == sorted(FLAGS)
    shown = tidegate(gateway, "audit", "get", odd.headers["x-prediction-id"])
    told = tidegate(gateway, "audit", "tail", "--type", "prediction")
    for flag in FLAGS:
        assert flag in shown
        assert flag in told


def test_refused_requests_say_why(gateway: Gateway) -> None:
    """400 with row, feature, found and expected; its record has the flags too."""
    assert ask(gateway, ROW, version="2").status == 200
    reply = ask(gateway, ROW, ODD, version="2")
    assert (reply.status, reply.content["code"]) == (400, "input_out_of_profile")
    assert reply.content["error"].startswith("input 'X' row 1, feature '")
    deadline = time.monotonic() + 60
    while not (refused := [e for e in events(gateway, Prediction) if e.code == "input_out_of_profile"]):
        assert time.monotonic() < deadline, "the refusal is not in the log"
        time.sleep(0.1)
    assert sorted(refused[0].flags) == sorted(FLAGS)
    assert (refused[0].model.version, refused[0].status) == ("2", 400)


def test_readers_of_the_log_go_on(gateway: Gateway) -> None:
    """The mirror answers flagged requests beside, the sidecar closes ticks over them; the log adds up."""
    odd = ask(gateway, ODD)
    # The mirror runs only when no one else does.
    deadline = time.monotonic() + 180
    while not any(e.derived_from == odd.headers["x-prediction-id"] for e in events(gateway, Shadow)):
        assert time.monotonic() < deadline, gateway.said()
        time.sleep(0.2)
    ticks = len(events(gateway, Verdict))
    while len(events(gateway, Verdict)) == ticks:
        ask(gateway, ROW)
        assert time.monotonic() < deadline, gateway.said()
        time.sleep(0.2)
    mirrored = [e for e in events(gateway, Shadow) if e.derived_from == odd.headers["x-prediction-id"]]
    assert [e.kind for e in mirrored] == ["done"]


def test_they_are_counted_by_kind(gateway: Gateway) -> None:
    """By version, kind and policy; a request once for each kind."""

    def counted() -> dict[tuple[str, ...], float]:
        found = scraped(gateway)
        return {
            (version, kind, policy): value
            for (name, *labels), value in found.items()
            if name == "tidegate_flagged_requests_total"
            for kind, _, policy, version in (labels,)
        }

    before = counted()
    ask(gateway, ODD, ODD)
    ask(gateway, ODD, version="2")
    deadline = time.monotonic() + 60
    for kind in ("range", "missing", "unknown_category"):
        for version, policy in (("1", "flag"), ("2", "reject")):
            while counted()[version, kind, policy] != before[version, kind, policy] + 1:
                assert time.monotonic() < deadline, (version, kind, policy)
                time.sleep(0.05)
    assert all(
        value == before[key]
        for key, value in counted().items()
        if (key[0], key[2]) not in {("1", "flag"), ("2", "reject")}
    )


def test_what_a_live_worker_says(gateway: Gateway) -> None:
    """Memory, CPU, turns, errors and stages of a worker that works; its log is JSON, line by line."""
    asked = 5
    for _ in range(asked):
        assert ask(gateway, ROW).status == 200
    ask(gateway, ODD, version="2")
    deadline = time.monotonic() + 60
    while (found := scraped(gateway))["tidegate_errors_total", "input_out_of_profile"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert 20 << 20 < found["tidegate_worker_resident_memory_bytes", "0"] < 2 << 30
    assert found["tidegate_worker_cpu_seconds_total", "0"] > 0.1
    assert found["tidegate_worker_turns_total", "0"] >= asked
    assert 0 <= found["tidegate_worker_loop_gap_seconds", "0"] < 60
    primary = ("flights", "primary", "1")
    assert found["tidegate_request_seconds_count", *primary] >= asked
    assert found["tidegate_stage_seconds_count", "flights", "infer", "1"] >= asked
    assert found["tidegate_queue_oldest_seconds", "flights", "1"] == 0
    lines = [line for line in gateway.log.read_text().splitlines() if line.startswith("{")]
    assert {"ts", "level", "role", "pid", "event"} <= set.intersection(
        *(set(json.loads(line)) for line in lines)
    )


def scraped(gateway: Gateway) -> dict[tuple[str, ...], float]:
    """Samples by name and label values, in the labels' alphabetical order."""
    with urlopen(f"{gateway.admin_url}/metrics", timeout=10) as reply:  # noqa: S310
        text = reply.read().decode()
    return {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
