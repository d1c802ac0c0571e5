"""Two sidecars of one gateway, one of which slept: what it concluded before moves nothing, what the other saw does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.serving import Gateway
from gateway import config as configuration
from gateway.audit.event import Verdict
from gateway.process import Context
from tests.e2e.onnx_models import write_linear
from tests.e2e.wire import Wire, infer
from tests.faults.chaos_proxy import ChaosProxy, Weather
from tests.faults.watched import admin, events_of, until

ROOT = Path(__file__).parents[2]
PATIENT, STRICT = "patient", "strict"
STALENESS_S = {PATIENT: 60, STRICT: 5}
"""By model; the one that is awake must act within it on a busy machine, too."""
SETTINGS = (
    "sidecar.enabled=false",
    "sidecar.tick_s=0.1",
    *(f"policy.{model}.max_staleness_s={limit_s}" for model, limit_s in STALENESS_S.items()),
    *(f"policy.{model}.alpha=0.5" for model in STALENESS_S),
)
VARIANTS = [
    {"name": "primary", "version": "1", "role": "primary", "weight_bp": 5_000},
    {"name": "canary", "version": "2", "role": "canary", "weight_bp": 5_000},
]
WITHIN_S = 60.0
Begin = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A worker with two models whose version 2 answers twenty times as much as version 1; no sidecar of its own."""
    base = tmp_path_factory.mktemp("two")
    for model in STALENESS_S:
        write_linear(base / "models", model, "1", 0.25)
        write_linear(base / "models", model, "2", 5.0)
    with Gateway(base / "models", base / "state", settings=SETTINGS) as serving:
        for model in STALENESS_S:
            _split(serving, model)
        yield serving


@pytest.fixture
def begin(gateway: Gateway, tmp_path: Path) -> Iterator[Begin]:
    """Starts a sidecar as the supervisor would, on an admin address; none outlives the test."""
    made: list[subprocess.Popen[bytes]] = []
    loaded, _ = configuration.load(None, [f"state_dir={gateway.state_dir}", *SETTINGS], {})
    gateway_id = (gateway.state_dir / "gateway_id").read_text().strip()
    context = Context(
        config=configuration.encode(loaded),
        models=str(gateway.models),
        state_dir=str(gateway.state_dir),
        gateway_id=gateway_id,
        ring_dir=f"/dev/shm/tidegate-{gateway_id}",  # noqa: S108
    )

    def start(admin_url: str, module: str = "shadow.sidecar") -> subprocess.Popen[bytes]:
        with (tmp_path / f"sidecar{len(made)}.log").open("wb") as log:
            environ = {**context.with_(admin_url=admin_url).to_env(), "PYTHONPATH": str(ROOT)}
            made.append(subprocess.Popen([sys.executable, "-P", "-m", module], env=environ, stderr=log))
        return made[-1]

    yield start
    for each in made:
        each.kill()
        each.wait()


@pytest.fixture
def proxy(gateway: Gateway) -> Iterator[ChaosProxy]:
    """Between the first sidecar and the admin listener."""
    made = ChaosProxy(gateway.admin_url.partition("//")[2])
    yield made
    made.close()


def _split(gateway: Gateway, model: str) -> None:
    for version in ("1", "2"):
        body = {"version": version, "reason": "a test"}
        until("it loads", lambda body=body: admin(gateway, "POST", f"models/{model}/load", body))
    _change(gateway, "PUT", f"routes/{model}", {"variants": VARIANTS})


def _change(gateway: Gateway, method: str, path: str, body: dict[str, Any]) -> None:
    """A person's change of a route, once control takes it (versions may still be loading)."""
    model = path.split("/")[1]

    def made() -> Any:
        revision = _route(gateway, model)["revision"]
        return admin(gateway, method, path, {"reason": "a person", **body}, revision=revision)

    until(f"{method} {path}", made, WITHIN_S)


def _route(gateway: Gateway, model: str) -> dict[str, Any]:
    reply = gateway.admin("GET", f"routes/{model}")
    assert reply.status == 200, reply
    return dict(reply.content)


def _weight_bp(gateway: Gateway, model: str) -> int:
    return int(next(v["weight_bp"] for v in _route(gateway, model)["variants"] if v["name"] == "canary"))


def _ask_until(gateway: Gateway, model: str, holds: Callable[[], Any]) -> None:
    """Requests of many rows, one after another, until it holds."""
    rows = np.random.default_rng(5).uniform(0, 1, (300, 4)).round(3)
    request = infer(model, rows.tolist())
    deadline = time.monotonic() + WITHIN_S
    with Wire(gateway.data_url) as wire:
        while not holds():
            assert wire.exchange(request).status == 200
            assert time.monotonic() < deadline, gateway.said()
            time.sleep(0.01)


def _pause(process: subprocess.Popen[bytes]) -> float:
    """Stop it where it stands; when that was (epoch seconds)."""
    process.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{process.pid}/stat")
    until("it is stopped", lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    return time.time()


def _end(process: subprocess.Popen[bytes]) -> None:
    """As the supervisor ends one, a stopped one too: what it is at is finished, and no more begun."""
    process.terminate()
    process.send_signal(signal.SIGCONT)
    assert process.wait(WITHIN_S) == 0


def _person_goes_on(gateway: Gateway, model: str) -> dict[str, Any]:
    """Whoever looked into it gives the version its share again; the route as it is then."""
    _change(gateway, "POST", f"routes/{model}/rearm", {"version": "2"})
    _change(gateway, "POST", f"routes/{model}/shift", {"weights_bp": {"canary": 5_000}})
    return _route(gateway, model)


def _said(log: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def _waits_for_a_lock(pid: int) -> bool:
    return any(line.split()[1:3] == ["->", "FLOCK"] and line.split()[5] == str(pid)
               for line in Path("/proc/locks").read_text().splitlines())  # fmt: skip


def test_the_second_waits_for_the_first_and_what_it_sees_counts(
    gateway: Gateway, begin: Begin, proxy: ChaosProxy
) -> None:
    """As long as the first lives, stopped or not, the second does nothing; then it takes over what was decided, and
    its rollback is taken."""
    first, _ = _asleep(gateway, begin, proxy, PATIENT, "up")
    second = begin(gateway.admin_url)
    until("the second waits", lambda: _waits_for_a_lock(second.pid))
    assert _weight_bp(gateway, PATIENT) == 5_000
    first.kill()
    until("the canary is taken back", lambda: _weight_bp(gateway, PATIENT) == 0)
    route = _route(gateway, PATIENT)
    assert (route["changed"]["by"], route["latched"]) == ("sidecar", ["2"])
    _end(second)


def _asleep(
    gateway: Gateway, begin: Begin, proxy: ChaosProxy, model: str, way: str
) -> tuple[subprocess.Popen[bytes], float]:
    """A sidecar that decided to take a canary back and was stopped before it could; and when (epoch seconds)."""
    if not _weight_bp(gateway, model):
        _person_goes_on(gateway, model)
    setattr(proxy, way, Weather(is_held=True))
    first = begin(f"http://{proxy.address}", "tests.faults.sidecar_patient")
    _ask_until(gateway, model, lambda: proxy.held)
    return first, _pause(first)


def _slept_through(gateway: Gateway, begin: Begin, proxy: ChaosProxy, model: str, way: str) -> dict[str, Any]:
    """The first sleeps in the middle of its act, the second does what is to be done, a person decides otherwise; the
    first goes on and ends. Gives the route as the person left it.

    Args:
        way: `up`: the first's look at the route came after all that; `down`: before, and its change after.
    """
    first, paused_s = _asleep(gateway, begin, proxy, model, way)
    second = begin(gateway.admin_url, "tests.faults.sidecar_unlocked")
    until("the second takes the canary back", lambda: _weight_bp(gateway, model) == 0)
    assert _route(gateway, model)["changed"]["by"] == "sidecar"
    _end(second)
    left = _person_goes_on(gateway, model)
    if STALENESS_S[model] < WITHIN_S:
        until("it slept for long enough", lambda: time.time() > paused_s + STALENESS_S[model] + 0.1)
    proxy.clear()
    _end(first)
    return left


def test_evidence_that_grew_old_in_its_sleep_is_refused(
    gateway: Gateway, begin: Begin, proxy: ChaosProxy, tmp_path: Path
) -> None:
    """409: whatever it names, its evidence is too old. It says so in its own log and in the gateway's, and nothing
    moves."""
    left = _slept_through(gateway, begin, proxy, STRICT, "down")
    assert _route(gateway, STRICT) == left
    assert b"HTTP/1.1 409 " in proxy.answered
    assert b'"evidence_stale"' in proxy.answered
    (line,) = _said(tmp_path / "sidecar0.log", "rollback_not_done")
    assert f"expected at most {STALENESS_S[STRICT]} s old (policy max_staleness_s)" in line["says"]
    until("the alarm is in the log", lambda: _alarms(gateway, STRICT))
    (alarm,) = _alarms(gateway, STRICT)
    assert (alarm.body["what"], alarm.body["outcome"], alarm.body["says"]) == ("act", "refused", line["says"])


def test_a_route_that_changed_in_its_sleep_is_not_overwritten(
    gateway: Gateway, begin: Begin, proxy: ChaosProxy
) -> None:
    """412: its evidence is young enough, but the revision that it names is over; nothing moves."""
    left = _slept_through(gateway, begin, proxy, PATIENT, "down")
    assert _route(gateway, PATIENT) == left
    assert b"HTTP/1.1 412 " in proxy.answered
    assert b'"revision_conflict"' in proxy.answered
    assert _alarms(gateway, PATIENT) == []


def test_a_route_that_it_has_not_read_of_is_left_alone(
    gateway: Gateway, begin: Begin, proxy: ChaosProxy
) -> None:
    """Its evidence is young enough and the revision the one that stands, but it is one of which the log has not told it
    yet: it asks for nothing."""
    left = _slept_through(gateway, begin, proxy, PATIENT, "up")
    assert _route(gateway, PATIENT) == left
    assert proxy.answered.count(b"HTTP/1.1 ") == proxy.answered.count(b"HTTP/1.1 200 ") == 1


def _alarms(gateway: Gateway, model: str) -> list[Verdict]:
    events = (event for event in events_of(gateway) if isinstance(event, Verdict))
    return [event for event in events if (event.kind, event.model) == ("alarm", model)]
