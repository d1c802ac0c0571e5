"""A canary under a lease in a running gateway: nobody renews it, control is killed, and its traffic still goes home."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from bench.serving import Gateway, call
from gateway.audit.identity import EventId, source_of
from tests.e2e.splits import (
    REQUEST,
    ROUTE,
    change,
    revision,
    route,
    serving_two,
    shift,
    split,
    variants,
)
from tests.e2e.wire import Wire

GRACE_S = 0.5
"""Above the 100 ms that a worker takes at most: these tests share their processors."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two workers over two versions, an automatic ramp with leases of two seconds, and no sidecar."""
    settings = ("policy.linear.ramp=auto", "policy.linear.lease_s=2", "sidecar.enabled=false")
    with serving_two(tmp_path_factory.mktemp("leases"), settings) as serving:
        yield serving


def changed(gateway: Gateway, verb: str, body: dict) -> dict:
    """One change at the present revision; gives the route after it."""
    reply = change(gateway, "POST", f"{ROUTE}/{verb}", body)
    assert reply.status in (200, 202), reply
    return route(gateway)


def versions(wires: list[Wire], count: int = 120) -> Counter[str]:
    """Who answered, over all connections."""
    return Counter(
        json.loads(wires[n % len(wires)].exchange(REQUEST).body)["model_version"] for n in range(count)
    )


def end_s(shown: dict) -> float:
    """End of the canary's lease, epoch seconds."""
    return shown["variants"][1]["lease_until_ns"] / 1e9


def sleep_until(at_s: float) -> None:
    time.sleep(max(0.0, at_s - time.time()))


def test_lease_ends_without_control_and_a_renewal_brings_it_back(gateway: Gateway) -> None:
    """Both answer while it runs; killed control or not, only the primary does from its end on; then both again."""
    wires = [Wire(gateway.data_url) for _ in range(12)]
    split(gateway, variants(5_000))
    shown = changed(gateway, "shift", {"weights_bp": {"canary": 5_000}})
    assert set(versions(wires)) == {"1", "2"}
    killed = gateway.kill9("control")
    sleep_until(end_s(shown) + GRACE_S)
    assert set(versions(wires)) == {"2"}
    gateway.await_successor("control", killed)
    assert set(versions(wires)) == {"2"}
    at = revision(gateway)
    deadline = time.monotonic() + 20
    while True:
        changed(gateway, "lease", {})
        if set(versions(wires, 24)) == {"1", "2"}:
            break
        assert time.monotonic() < deadline
    assert revision(gateway) == at
    for wire in wires:
        wire.close()


def test_sidecar_takes_a_canary_back_and_the_latch_outlives_control(gateway: Gateway) -> None:
    """Its own token is enough for that and for nothing else; a successor of control refuses the version too."""
    changed(gateway, "shift", {"weights_bp": {"canary": 5_000}})
    token = (gateway.state_dir / "sidecar.token").read_text().strip()
    headers = {"authorization": f"Bearer {token}", "if-match": f'"{revision(gateway)}"'}
    path = f"/admin/v1/{ROUTE}"
    body = {"weights_bp": {"canary": 1}, "reason": "more"}
    assert call(gateway.admin_url, "POST", f"{path}/shift", body, headers).status == 403
    gateway_id = (gateway.state_dir / "gateway_id").read_text().strip()
    event = EventId(source_of(gateway_id, "sidecar", 0), 1, 42)
    evidence = {"event": str(event), "at_ns": time.time_ns()}
    body = {"variant": "canary", "reason": "fails", "evidence": evidence}
    assert call(gateway.admin_url, "POST", f"{path}/rollback", body, headers).status == 200
    wire = Wire(gateway.data_url)
    assert set(versions([wire])) == {"2"}
    gateway.await_successor("control", gateway.kill9("control"))
    deadline = time.monotonic() + 20
    while (reply := shift(gateway, 100)).status in (0, 503):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (reply.status, "latched" in reply.content["error"]) == (409, True)
    changed(gateway, "rearm", {"version": "1"})
    assert shift(gateway, 100).status in (200, 202)
    wire.close()
