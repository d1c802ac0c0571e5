"""What holds a route, each mechanism in a running gateway: over HTTP, in the log, and in the history."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from bench.serving import Gateway, Reply, call
from gateway.audit.event import Control
from gateway.audit.spool_feed import SpoolFeed
from tests.e2e.onnx_models import write_linear

BODY = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
INFER = "/v2/models/linear/infer"
VARIANTS = [
    {"name": "primary", "version": "2", "role": "primary", "weight_bp": 5_000},
    {"name": "canary", "version": "1", "role": "canary", "weight_bp": 5_000},
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two workers over two versions, leases of two seconds, and nobody who renews them."""
    base = tmp_path_factory.mktemp("held")
    write_linear(base / "models", version="1", scale=0.25)
    write_linear(base / "models", version="2", scale=0.5)
    settings = ("policy.linear.ramp=auto", "policy.linear.lease_s=2", "sidecar.enabled=false")
    with Gateway(base / "models", base / "state", workers=2, settings=settings) as serving:
        yield serving


def route(gateway: Gateway) -> dict:
    reply = gateway.admin("GET", "routes/linear")
    assert reply.status == 200, reply
    return reply.content


def ask(gateway: Gateway, method: str, path: str, body: dict) -> Reply:
    """A change at the present revision."""
    return gateway.admin(method, path, {"reason": "test", **body}, revision=route(gateway)["revision"])


def logged(gateway: Gateway) -> list[Control]:
    """Control's events of this model, in order."""
    events = SpoolFeed(gateway.state_dir / "spool").read(1_000_000, 0).events
    return [e for e in events if isinstance(e, Control) and e.model == "linear"]


def history(gateway: Gateway) -> list[dict]:
    reply = gateway.admin("GET", "routes/linear/history?limit=10")
    assert reply.status == 200, reply
    return reply.content["entries"]


def within(condition: Callable[[], bool], wait_s: float = 15) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_end_of_a_lease(gateway: Gateway) -> None:
    """Half of the traffic goes home two seconds after the split; the route says so, log and history a second later."""
    split = ask(gateway, "PUT", "routes/linear", {"variants": VARIANTS})
    assert split.status == 200, split
    within(lambda: any(v.get("lease_over") for v in route(gateway)["variants"]))
    within(lambda: logged(gateway)[-1].kind == "lease_over")
    event = logged(gateway)[-1]
    assert (event.revision, event.after and event.after["lost_bp"]) == (
        split.content["revision"],
        {"canary": 5000},
    )
    newest = history(gateway)[0]
    assert (newest["kind"], newest["event"], newest["is_revision"]) == ("lease_over", event.id, False)


def test_a_freeze(gateway: Gateway) -> None:
    """A frozen route takes no shift, the refusal says who froze it; both ends stand in log and history."""
    assert ask(gateway, "POST", "routes/linear/freeze", {"reason": "look"}).status == 200
    assert route(gateway)["frozen"]
    refused = ask(gateway, "POST", "routes/linear/shift", {"weights_bp": {"canary": 1}})
    assert (refused.status, refused.content["code"]) == (409, "state_conflict")
    assert "frozen by" in refused.content["error"]
    assert ask(gateway, "POST", "routes/linear/thaw", {}).status == 200
    assert [e.kind for e in logged(gateway)][-2:] == ["freeze", "thaw"]
    assert [e["kind"] for e in history(gateway)][:2] == ["thaw", "freeze"]


def test_a_stop(gateway: Gateway) -> None:
    """After the answer nothing of the model is answered, pinned requests neither, also by a successor; then it is."""
    stopped = ask(gateway, "POST", "models/linear/stop", {"reason": "harm"})
    assert stopped.status == 200, stopped
    for path in (INFER, "/v2/models/linear/versions/2/infer"):
        for _ in range(20):
            reply = call(gateway.data_url, "POST", path, BODY)
            assert (reply.status, reply.content["code"]) == (503, "model_stopped")
    killed = gateway.kill9("worker")
    gateway.await_successor("worker", killed)
    control = gateway.kill9("control")
    gateway.await_successor("control", control)

    def still() -> bool:
        try:
            return route(gateway)["stopped"]["reason"] == "harm"
        except (OSError, AssertionError):
            return False

    within(still, 30)
    reply = call(gateway.data_url, "POST", INFER, BODY)
    assert (reply.status, reply.content["code"]) == (503, "model_stopped")
    assert ask(gateway, "POST", "models/linear/resume", {}).status == 200
    within(lambda: call(gateway.data_url, "POST", INFER, BODY).status == 200)
    assert [e.kind for e in logged(gateway) if e.kind in {"stop", "resume"}] == ["stop", "resume"]
    assert [e["kind"] for e in history(gateway) if e["is_revision"]][:2] == ["resume", "stop"]


def test_bounds(gateway: Gateway) -> None:
    """Set and shown over HTTP; in log and history with who set them. (That automata keep to them: `test_holds`.)"""
    bounds = {"max_canary_bp": 2000, "max_step_bp": 500, "changes_per_h": 6, "dwell_s": 60}
    assert ask(gateway, "POST", "routes/linear/bounds", bounds).status == 200
    assert route(gateway)["bounds"] == bounds
    event = logged(gateway)[-1]
    assert (event.kind, event.by, event.after and event.after["bounds"]["max_step_bp"]) == (
        "bounds",
        "admin",
        500,
    )
    assert (history(gateway)[0]["kind"], history(gateway)[0]["event"]) == ("bounds", event.id)
