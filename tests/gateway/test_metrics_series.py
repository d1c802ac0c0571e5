"""/metrics as a whole: names and units, histograms that add up, and series that no client can make."""

from __future__ import annotations

import asyncio
import random
import re
import time
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from uvicorn.server import ServerState

from docs.generate import metric_families
from gateway import counting
from gateway.api.fast import FastProtocol
from gateway.api.metrics import exposition
from gateway.api.problems import answered
from gateway.vitals import Vitals
from tests.gateway.path import Path_
from tests.gateway.test_fast_door import Transport

WORDS = "".join(map(chr, range(33, 127)))


def series(path: Path_, state_dir: Path) -> dict[tuple[str, ...], float]:
    """Every series of a scrape, by name and label values."""
    counting.publish()
    path.models.publish_waiting()
    Vitals(path.fleet.worker(0)).errors(answered, {})
    assert path.models.serving is not None
    body, _ = exposition(path.fleet, path.models.serving, state_dir)
    return {
        (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def any_request(rng: random.Random) -> bytes:
    """A request with names, versions and headers that nobody has seen before; one in ten is for the model served."""

    def word(*, safe: bool = True) -> str:
        text = "".join(rng.choices(WORDS, k=rng.randint(1, 24)))
        return re.sub(r"[^A-Za-z0-9._-]", "", text) or "x" if safe else text

    model = "sum" if rng.random() < 0.3 else word()
    version = f"/versions/{rng.choice([word(), str(rng.randint(0, 10**9))])}" if rng.random() < 0.3 else ""
    names = [word(), "x-routing-key", "traceparent", "x-request-id", word(), "x-tidegate-audit-level"]
    fields = "".join(f"{name}: {word(safe=rng.random() < 0.9)}\r\n" for name in rng.sample(names, 2))
    datatype = "FP32" if rng.random() < 0.9 else word()
    tensor = {"name": "X", "datatype": datatype, "shape": [1, 4], "data": [1, 2, 3, rng.random()]}
    body = orjson.dumps({"id": word(safe=False), "inputs": [tensor]})
    head = f"POST /v2/models/{model}{version}/infer HTTP/1.1\r\nhost: h\r\n{fields}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_no_client_makes_a_series(tmp_path: Path) -> None:
    """Ten thousand names, versions and headers later the scrape has the series that it had."""

    async def play() -> tuple[Any, Any, bytes]:
        path = Path_(tmp_path)
        settings = uvicorn.Config(app=None, log_config=None, server_header=False)  # type: ignore[arg-type]
        settings.load()
        bound = FastProtocol.bind(path.core, takes_fast=True, connections_max=4)
        assert path.send([1, 2, 3, 4]).status == 0
        assert path.send([1, 2, 3, 666]).status == 0
        path.core.turn()
        before = series(path, tmp_path)
        rng = random.Random(5)
        written = b""
        door = transport = None
        for sent in range(10_000):
            if door is None or transport is None or transport.closed:
                door, transport = (
                    bound(settings, ServerState(), {}, _loop=asyncio.get_running_loop()),
                    Transport(),
                )
                door.connection_made(transport)
            door.data_received(any_request(rng))
            path.core.turn()
            await asyncio.sleep(0)
            if sent % 50 == 49:
                path.events()
                written, transport.written = written + transport.written, b""
        path.core.turn()
        path.close()
        return before, series(path, tmp_path), written

    before, after, written = asyncio.run(play())
    assert after.keys() == before.keys()
    for status in (b"HTTP/1.1 200", b"HTTP/1.1 404", b"HTTP/1.1 400"):
        assert written.count(status) > 100
    assert after["tidegate_errors_total", "code=unknown_model"] > 3000
    done = ("tidegate_requests_total", "kind=done", "model=sum", "version=1")
    assert after[done] > before[done]


def test_histograms_add_up(tmp_path: Path) -> None:
    """Buckets rise to the count; the requests of every stage and of all variants are those that ran."""

    async def play() -> Path_:
        path = Path_(tmp_path)
        for value in range(40):
            path.send([value, 2, 3, 4] if value % 9 else [1, 2, 3, 666])
            if value % 7 == 0:
                path.core.turn()
        path.core.turn()
        path.close()
        return path

    found = series(asyncio.run(play()), tmp_path)
    ran = found["tidegate_requests_total", "kind=done", "model=sum", "version=1"]
    ran += found["tidegate_requests_total", "kind=failed", "model=sum", "version=1"]
    assert ran == 40
    counts = {key: value for key, value in found.items() if key[0].endswith("_count") and "sum" in key[1]}
    for key, value in counts.items():
        name, labels = key[0].removesuffix("_count"), key[1:]
        buckets = [
            (float(next(label for label in other if label.startswith("le="))[3:]), count)
            for other, count in found.items()
            if other[0] == f"{name}_bucket" and set(labels) <= set(other)
        ]
        rising = [count for _, count in sorted(buckets)]
        assert rising == sorted(rising)
        assert rising[-1] == value
        if name != "tidegate_run_rows":
            assert value == ran
    assert {key[0] for key in counts} == {
        "tidegate_request_seconds_count", "tidegate_stage_seconds_count", "tidegate_run_rows_count",
    }  # fmt: skip
    of = ("model=sum", "version=1")
    assert found["tidegate_run_rows_sum", *of] == 40
    assert found["tidegate_run_slowdown", *of] >= 1
    assert found["tidegate_run_limit_rows", *of] >= 1
    assert found["tidegate_run_limit_seconds", *of] > 0


def test_names_follow_the_rules() -> None:
    """One prefix, base units, help for each; labels that are the gateway's own words."""
    known = {
        "model",
        "version",
        "variant",
        "stage",
        "kind",
        "policy",
        "cut",
        "code",
        "worker",
        "process",
        "cause",
        "what",
    }
    families = metric_families()
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    for family in families:
        assert re.fullmatch(r"tidegate_[a-z_]+[a-z]", family.name)
        assert not re.search(r"_(ms|us|ns|s|ratio|kib|mib|total)$", family.name)
        assert family.documentation
        assert set(getattr(family, "_labelnames", ())) <= known


def test_a_successors_counters_go_on(tmp_path: Path) -> None:
    """What a worker counted stands when the next one begins at nought; a gap of the loop lasts one second's report."""
    from gateway import fleet as words_of

    words = words_of.Fleet.create(tmp_path / "fleet", 1).worker(0)
    for _ in range(2):
        vitals = Vitals(words)
        vitals.count(words_of.REFUSED, 7)
        vitals.errors({"overloaded": 2, "unheard of": 2}, {"overloaded": 1})
    vitals.beat(10.0, 0.02)
    vitals.beat(10.52, 0.02)
    vitals.beat(10.54, 0.02)
    vitals.process()
    assert words[words_of.REFUSED] == 14
    assert words[words_of.ERROR_CODE0 + counting.ERROR_CODES.index("overloaded")] == 6
    assert words[words_of.ERROR_CODE0 + words_of.ERROR_CODES_MAX - 1] == 4
    assert 490_000_000 < words[words_of.LOOP_GAP_NS] < 510_000_000
    assert words[words_of.CPU_NS] > 0
    assert words[words_of.RSS_BYTES] > 1 << 20
    vitals.process()
    assert words[words_of.LOOP_GAP_NS] == 0


def test_refusals_by_the_head_alone_are_counted(tmp_path: Path) -> None:
    """Their replies are made before and sent often: each that was sent counts, none for being made."""

    async def play() -> int:
        path = Path_(tmp_path)
        entry = path.models.get("sum")
        assert entry is not None
        entry.turn_away_until_ns = time.perf_counter_ns() + 60_000_000_000
        before = answered["overloaded"]
        for _ in range(20):
            assert path.send([1, 2, 3, 4]).status == 503
        path.close()
        return answered["overloaded"] - before + path.core.admission.turned_away

    assert asyncio.run(play()) == 20
