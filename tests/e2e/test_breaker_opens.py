"""A canary that fails: users get the primary's answers, and its traffic is taken away before anyone looks."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator

import pytest

from bench.serving import Gateway
from gateway.audit.event import Control, Prediction
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.onnx_models import write_linear, write_roots
from tests.e2e.splits import revision, route, shift, split, variants, within
from tests.e2e.wire import Wire, infer

BELOW_ZERO = infer("linear", [[-1.0, -2.0, -3.0, -4.0]])
FINE = infer("linear", [[1.0, 4.0, 9.0, 16.0]])


@pytest.fixture(scope="module", params=["fast", "starlette"])
def rooted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One worker; version 1 answers everything, version 2 gives NaN for what is below zero. Either door."""
    base = tmp_path_factory.mktemp("rooted")
    write_linear(base / "models", version="1")
    write_roots(base / "models", version="2")
    with Gateway(base / "models", base / "state", settings=(f"data.door={request.param}",)) as serving:
        split(serving, variants(0, primary="1", canary="2"))
        yield serving


def events(gateway: Gateway, wanted: int, at: int) -> tuple[list[Prediction], list[Control]]:
    """What the log has of a revision: predictions, and control events of kind breaker."""
    feed = SpoolFeed(gateway.state_dir / "spool")
    predictions: list[Prediction] = []
    breakers: list[Control] = []
    deadline = time.monotonic() + 60
    try:
        while len(predictions) < wanted or not breakers:
            assert time.monotonic() < deadline, (len(predictions), breakers)
            for event in feed.read(10_000, 200).events:
                if isinstance(event, Prediction) and event.route and event.route.revision == at:
                    predictions.append(event)
                elif isinstance(event, Control) and event.kind == "breaker" and event.revision == at:
                    breakers.append(event)
    finally:
        feed.close()
    return predictions, breakers


def figure(gateway: Gateway, name: str, version: str) -> float:
    """A metric of one version."""
    with urllib.request.urlopen(f"{gateway.admin_url}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    start = f'{name}{{model="linear",version="{version}"}} '
    return next(float(line[len(start) :]) for line in lines if line.startswith(start))


def history(gateway: Gateway) -> list[dict]:
    """The newest of it, as anyone reads it."""
    return list(gateway.admin("GET", "routes/linear/history?limit=5").content["entries"])


def test_a_canary_that_fails_costs_nobody_an_answer(rooted: Gateway) -> None:
    """Half of the traffic on a canary that cannot answer it: all get the primary's finite numbers; the breaker opens
    once, in the log, in /metrics and in the history; and the next revision tries the canary again."""
    assert shift(rooted, 5_000).status == 200
    at = revision(rooted)
    with Wire(rooted.data_url) as wire:
        versions: Counter[str] = Counter()
        for _ in range(200):
            reply = wire.exchange(BELOW_ZERO)
            assert reply.status == 200, reply.body
            content = json.loads(reply.body)
            assert None not in content["outputs"][0]["data"]
            versions[content["model_version"]] += 1
        assert versions == {"1": 200}
        predictions, breakers = events(rooted, 200, at)
        assert len(breakers) == 1
        assert breakers[0].after is not None
        assert (breakers[0].after["variant"], breakers[0].after["counts"]) == ("canary", 3)
        reasons = Counter(
            (e.route.reason, e.route.assigned, e.model.version) for e in predictions if e.route and e.model
        )
        assert reasons["retry", "canary", "1"] == 3
        assert reasons["fallback", "canary", "1"] + reasons["weight", "primary", "1"] == 197
        assert all(e.first_try == {"version": "2", "code": "nonfinite"} for e in predictions if e.first_try)
        assert figure(rooted, "tidegate_breaker_open_workers", "2") == 1
        assert figure(rooted, "tidegate_retried_requests_total", "2") == 3
        within(lambda: history(rooted)[0]["kind"] == "breaker")
        newest = history(rooted)[0]
        assert (newest["revision"], newest["by"], newest["is_revision"]) == (at, "worker-0", False)
        assert shift(rooted, 4_000).status == 200
        served = Counter(json.loads(wire.exchange(FINE).body)["model_version"] for _ in range(100))
        assert served["2"] > 0, "another revision, another try"
        assert figure(rooted, "tidegate_breaker_open_workers", "2") == 0


def test_a_variant_can_be_asked_for(rooted: Gateway) -> None:
    """`x-tidegate-variant` at any weight; an unknown one is told which there are."""
    assert shift(rooted, 0).status == 200
    named = {
        name: infer("linear", [[1.0, 4.0, 9.0, 16.0]], x_tidegate_variant=name)
        for name in ("canary", "nobody")
    }
    with Wire(rooted.data_url) as wire:
        for _ in range(3):  # a head that repeats is kept
            assert json.loads(wire.exchange(named["canary"]).body)["model_version"] == "2"
        assert json.loads(wire.exchange(FINE).body)["model_version"] == "1"
        reply = wire.exchange(named["nobody"])
        assert reply.status == 400
        assert "has variants primary, canary" in json.loads(reply.body)["error"]
    assert [v["name"] for v in route(rooted)["variants"]] == ["primary", "canary"]
