"""Acts: against the real admin API, and against one that is away, refuses, or was changed by someone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from gateway.audit.identity import EventId, source_of
from gateway.settings import Policy
from shadow.act import Acted, Actor, Exchange, Pending, Reply
from tests.gateway.control.plane import GATEWAY_ID, MODEL, Plane
from tests.gateway.test_admin import ROUTE, SIDECAR_TOKEN, Admin
from tests.gateway.test_admin import admin as admin  # a fixture
from tests.gateway.test_admin import plane as plane  # a fixture

EVENT = str(EventId(source_of(GATEWAY_ID, "sidecar", 0), 1, 2))
NEWEST = 1000
"""As if the log had been read beyond whatever the route is at."""
PENDING = Pending(model=MODEL, rollout=2, variant="canary", version="2", says="version 2 fails", event=EVENT)


class Bridge:
    """Requests to the admin API of this process; what happens before a request can be chosen."""

    def __init__(self, admin: Admin) -> None:
        self.admin = admin
        self.seen: list[tuple[str, str]] = []
        self.before: dict[str, Callable[[], object]] = {}

    def __call__(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        if method in self.before:
            self.before.pop(method)()
        self.seen.append((method, path))
        reply = self.admin.plain(method, path, content=body or b"", headers=dict(headers))
        return Reply(reply.status_code, reply.content)


@pytest.fixture
def bridge(admin: Admin) -> Bridge:
    """Version 2 has a tenth."""
    assert admin.split().status_code == 200
    return Bridge(admin)


@pytest.fixture
def actor(bridge: Bridge, tmp_path: Path) -> Actor:
    """The sidecar's, with its token."""
    (tmp_path / "sidecar.token").write_text(SIDECAR_TOKEN + "\n")
    return Actor("http://127.0.0.1:8081", tmp_path, bridge)


def shown(admin: Admin) -> Any:
    """The route as anyone sees it."""
    return admin.send("GET", ROUTE).json()


def test_a_rollback_is_done(actor: Actor, admin: Admin) -> None:
    """Weight 0, latched, by the sidecar, in its words, with the decision as evidence; again: nothing to do."""
    assert actor.roll_back(PENDING, time.time_ns(), NEWEST) == Acted("done")
    route = shown(admin)
    weights = {v["name"]: v.get("weight_bp", 0) for v in route["variants"]}
    assert weights == {"primary": 10_000, "canary": 0}
    assert route["latched"] == ["2"]
    changed = route["changed"]
    assert (changed["by"], changed["reason"], changed["evidence"]) == ("sidecar", PENDING.says, EVENT)
    assert actor.roll_back(PENDING, time.time_ns(), NEWEST) == Acted("nothing_to_do")


def test_a_long_reason_is_cut(actor: Actor, admin: Admin) -> None:
    """The gateway takes no longer one, and an act must not fail on words."""
    assert actor.roll_back(
        msgspec.structs.replace(PENDING, says="x" * 5000), time.time_ns(), NEWEST
    ) == Acted("done")
    assert shown(admin)["changed"]["reason"] == "x" * 1000


def test_a_person_took_the_weight_away(actor: Actor, admin: Admin, bridge: Bridge) -> None:
    """Nothing is changed on top of it: no latch."""
    admin.send("POST", f"{ROUTE}/shift", {"weights_bp": {"canary": 0}, "reason": "no"}, if_match="2")
    assert actor.roll_back(PENDING, time.time_ns(), NEWEST).outcome == "nothing_to_do"
    assert shown(admin)["latched"] == []
    assert {method for method, _ in bridge.seen} == {"GET"}


def test_the_variant_was_renamed(actor: Actor, admin: Admin) -> None:
    """The version is what counts, whatever its variant is called now."""
    variants = [
        {"name": "primary", "version": "1", "role": "primary", "weight_bp": 8_000},
        {"name": "late", "version": "2", "role": "canary", "weight_bp": 2_000},
    ]
    assert admin.send("PUT", ROUTE, {"variants": variants, "reason": "x"}, if_match="2").status_code == 200
    assert actor.roll_back(PENDING, time.time_ns(), NEWEST) == Acted("done")


def test_the_route_changes_meanwhile(actor: Actor, admin: Admin, bridge: Bridge) -> None:
    """412: a conflict, and nothing overwritten; the next try sees the new revision."""
    body = {"weights_bp": {"canary": 500}, "reason": "slower"}
    bridge.before["POST"] = lambda: admin.send("POST", f"{ROUTE}/shift", body, if_match="2")
    acted = actor.roll_back(PENDING, time.time_ns(), NEWEST)
    assert (acted.outcome, shown(admin)["revision"]) == ("conflict", 3)
    assert "revision 3" in acted.says
    assert actor.roll_back(PENDING, time.time_ns(), NEWEST) == Acted("done")
    assert shown(admin)["revision"] == 4


def test_a_route_that_was_not_read_in_the_log_is_left_alone(
    actor: Actor, admin: Admin, bridge: Bridge
) -> None:
    """Who took the version back, armed it again and gave it weight knows more than evidence from before: not even asked
    for, until the log has been read so far."""
    for n, (verb, body) in enumerate(
        (
            ("rollback", {"variant": "canary"}),
            ("rearm", {"version": "2"}),
            ("shift", {"weights_bp": {"canary": 500}}),
        )
    ):
        sent = admin.send("POST", f"{ROUTE}/{verb}", {**body, "reason": "I know why"}, if_match=str(2 + n))
        assert sent.status_code == 200
    bridge.seen.clear()
    acted = actor.roll_back(PENDING, time.time_ns(), 4)
    assert (acted.outcome, acted.says) == ("conflict", "route m is at revision 5, the log was read to 4")
    assert ({method for method, _ in bridge.seen}, shown(admin)["revision"]) == ({"GET"}, 5)
    assert actor.roll_back(PENDING, time.time_ns(), 5) == Acted("done")


def test_a_hold_beats_the_sidecar(actor: Actor, admin: Admin) -> None:
    """Frozen: refused in the gateway's words; after the thaw it is done."""
    admin.send("POST", f"{ROUTE}/freeze", {"reason": "wait"}, if_match="2")
    acted = actor.roll_back(PENDING, time.time_ns(), NEWEST)
    assert acted.outcome == "refused"
    assert "frozen" in acted.says
    admin.send("POST", f"{ROUTE}/thaw", {"reason": "go"}, if_match="3")
    assert actor.roll_back(PENDING, time.time_ns(), NEWEST) == Acted("done")


def test_old_evidence_is_refused(actor: Actor, admin: Admin) -> None:
    """Control looks at its age, too."""
    acted = actor.roll_back(PENDING, time.time_ns() - 3600 * 10**9, NEWEST)
    assert acted.outcome == "refused"
    assert "old" in acted.says
    assert shown(admin)["revision"] == 2


def test_an_unknown_model_is_refused(actor: Actor) -> None:
    """The model is gone."""
    gone = Pending(model="nobody", rollout=2, variant="canary", version="2", says="x", event=EVENT)
    assert actor.roll_back(gone, time.time_ns(), NEWEST).outcome == "refused"


def test_leases_under_an_automatic_ramp(actor: Actor, admin: Admin, plane: Plane) -> None:
    """Renewed at the same revision; not for a condemned version; refused where there is none."""
    (refused,) = actor.renew_leases({MODEL: frozenset()}).values()
    assert refused.outcome == "refused"
    plane.engine.policy_of = lambda model: Policy(ramp="auto")
    assert actor.renew_leases({MODEL: frozenset()}) == {MODEL: Acted("done")}
    route = shown(admin)
    assert route["revision"] == 2
    until = next(v["lease_until_ns"] for v in route["variants"] if v["role"] == "canary")
    assert until > time.time_ns()
    assert actor.renew_leases({MODEL: frozenset({"2"})}) == {}
    assert actor.renew_leases({}) == {}
    assert actor.renew_leases({"nobody": frozenset()})["nobody"].outcome == "refused"


def test_leases_of_a_route_without_canaries(actor: Actor, admin: Admin) -> None:
    """Nothing is asked of it."""
    admin.send("POST", f"{ROUTE}/shift", {"weights_bp": {"canary": 0}, "reason": "no"}, if_match="2")
    assert actor.renew_leases({MODEL: frozenset()}) == {}


def away(*_request: object) -> Reply:
    """Nobody listens."""
    raise ConnectionRefusedError


def said(status: int, body: bytes) -> Exchange:
    """Someone who says this to everything."""
    return lambda *_request: Reply(status, body)


@pytest.mark.parametrize(
    "exchange",
    [
        away,
        said(503, b'{"error":"audit_unavailable"}'),
        said(502, b"<html>"),
        said(200, b"<html>"),
        said(200, b'{"variants":[{}]}'),
        said(200, b"[1]"),
        said(200, b'{"variants":7}'),
    ],
    ids=["away", "503", "502", "html", "no names", "a list", "no variants"],
)
def test_what_cannot_be_understood_is_unreachable(tmp_path: Path, exchange: Exchange) -> None:
    """No listener, one that cannot, one that is none of ours: tried again later, never an accident."""
    (tmp_path / "sidecar.token").write_text(SIDECAR_TOKEN)
    actor = Actor("http://127.0.0.1:8081", tmp_path, exchange)
    assert actor.roll_back(PENDING, 1, NEWEST).outcome == "unreachable"
    assert actor.renew_leases({MODEL: frozenset()})[MODEL].outcome == "unreachable"


class Listener(BaseHTTPRequestHandler):
    """A listener that has no route, and remembers who asked for one."""

    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["authorization"]))
        body = b'{"error":"no route"}'
        self.send_response(404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_requests_go_to_the_admin_listener(tmp_path: Path) -> None:
    """Over a socket, with the sidecar's token; what is said there is told; once nobody listens it is unreachable."""
    (tmp_path / "sidecar.token").write_text(SIDECAR_TOKEN)
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        actor = Actor(f"http://127.0.0.1:{server.server_port}", tmp_path)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert actor.roll_back(PENDING, 1, NEWEST) == Acted("refused", "no route")
        thread.join()
    assert Listener.asked == [(ROUTE, f"Bearer {SIDECAR_TOKEN}")]
    assert actor.roll_back(PENDING, 1, NEWEST).outcome == "unreachable"


def test_without_a_token_there_is_no_control_yet(tmp_path: Path) -> None:
    """Control makes the token when it first starts; until then it is unreachable."""
    actor = Actor("http://127.0.0.1:8081", tmp_path, away)
    acted = actor.roll_back(PENDING, 1, NEWEST)
    assert acted.outcome == "unreachable"
    assert "sidecar.token" in acted.says
