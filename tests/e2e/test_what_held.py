"""What holds a route, each mechanism in a running gateway: over HTTP, in the log, and in the history."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.serving import Gateway, call
from tests.e2e.splits import change, controls, route, serving_two, split, variants, within

BODY = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
INFER = "/v2/models/linear/infer"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two workers over two versions, leases of two seconds, and nobody who renews them."""
    settings = ("policy.linear.ramp=auto", "policy.linear.lease_s=2", "sidecar.enabled=false")
    with serving_two(tmp_path_factory.mktemp("held"), settings) as serving:
        yield serving


def history(gateway: Gateway) -> list[dict]:
    reply = gateway.admin("GET", "routes/linear/history?limit=10")
    assert reply.status == 200, reply
    return reply.content["entries"]


def declared(shown: dict) -> dict:
    """A route without what changes by itself: versions load, leases end."""
    variants = [
        {k: v for k, v in one.items() if k not in ("state", "lease_over")} for one in shown["variants"]
    ]
    return {**shown, "variants": variants}


def test_the_end_of_a_lease(gateway: Gateway) -> None:
    """Half of the traffic goes home two seconds after the split; the route says so, log and history a second later."""
    made = split(gateway, variants(5_000))
    assert made.status == 200, made
    within(lambda: any(v.get("lease_over") for v in route(gateway)["variants"]))
    within(lambda: controls(gateway)[-1].kind == "lease_over")
    event = controls(gateway)[-1]
    assert (event.revision, event.after and event.after["lost_bp"]) == (
        made.content["revision"],
        {"canary": 5000},
    )
    newest = history(gateway)[0]
    assert (newest["kind"], newest["event"], newest["is_revision"]) == ("lease_over", event.id, False)


def test_a_freeze(gateway: Gateway) -> None:
    """A frozen route takes no shift, the refusal says who froze it; both ends stand in log and history."""
    assert change(gateway, "POST", "routes/linear/freeze", {"reason": "look"}).status == 200
    assert route(gateway)["frozen"]
    refused = change(gateway, "POST", "routes/linear/shift", {"weights_bp": {"canary": 1}})
    assert (refused.status, refused.content["code"]) == (409, "state_conflict")
    assert "frozen by" in refused.content["error"]
    assert change(gateway, "POST", "routes/linear/thaw", {}).status == 200
    assert [e.kind for e in controls(gateway)][-2:] == ["freeze", "thaw"]
    assert [e["kind"] for e in history(gateway)][:2] == ["thaw", "freeze"]


def test_a_stop(gateway: Gateway) -> None:
    """After the answer nothing of the model is answered, pinned requests neither, also by a successor; then it is."""
    stopped = change(gateway, "POST", "models/linear/stop", {"reason": "harm"})
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

    within(still)
    reply = call(gateway.data_url, "POST", INFER, BODY)
    assert (reply.status, reply.content["code"]) == (503, "model_stopped")
    assert change(gateway, "POST", "models/linear/resume", {}).status == 200
    within(lambda: call(gateway.data_url, "POST", INFER, BODY).status == 200)
    assert [e.kind for e in controls(gateway) if e.kind in {"stop", "resume"}] == ["stop", "resume"]
    assert [e["kind"] for e in history(gateway) if e["is_revision"]][:2] == ["resume", "stop"]


def test_bounds(gateway: Gateway) -> None:
    """Set and shown over HTTP; in log and history with who set them."""
    bounds = {"max_canary_bp": 2000, "max_step_bp": 500, "changes_per_h": 6, "dwell_s": 60}
    assert change(gateway, "POST", "routes/linear/bounds", bounds).status == 200
    assert route(gateway)["bounds"] == bounds
    event = controls(gateway)[-1]
    assert (event.kind, event.by, event.after and event.after["bounds"]["max_step_bp"]) == (
        "bounds",
        "admin",
        500,
    )
    assert (history(gateway)[0]["kind"], history(gateway)[0]["event"]) == ("bounds", event.id)


def test_an_automaton_keeps_to_the_bounds(gateway: Gateway) -> None:
    """Beyond them it is refused, which bound is said; log and history have the refusal. A person may go beyond."""
    asked = {"principal": "ramp", "scopes": ["read", "shift:linear"], "automaton": True, "reason": "it ramps"}
    made = gateway.admin("POST", "tokens", asked)
    assert made.status == 201, made
    assert change(gateway, "POST", "routes/linear/bounds", {"max_canary_bp": 2000}).status == 200
    before = route(gateway)
    headers = {
        "authorization": f"Bearer {made.content['token']}",
        "if-match": f'"{before["revision"]}"',
    }
    body = {"weights_bp": {"canary": 6_000}, "reason": "up"}
    refused = call(gateway.admin_url, "POST", "/admin/v1/routes/linear/shift", body, headers)
    assert (refused.status, refused.content["code"]) == (409, "out_of_bounds")
    assert "max_canary_bp = 2000" in refused.content["error"]
    assert declared(route(gateway)) == declared(before)
    event = controls(gateway)[-1]
    assert (event.kind, event.by, event.revision) == ("refused", "token:ramp", before["revision"])
    newest = history(gateway)[0]
    assert (newest["kind"], newest["event"], newest["is_revision"]) == ("refused", event.id, False)
    assert change(gateway, "POST", "routes/linear/shift", {"weights_bp": {"canary": 6_000}}).status == 200
