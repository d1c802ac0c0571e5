"""The admin API over HTTP: who may, what is refused, and what the answers look like."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route as Address

from gateway import fleet as words_of
from gateway.api.addresses import Unruled, get
from gateway.api.admin import AdminApi
from gateway.control import committing
from gateway.control.access import ADMIN_RULES, LOAD
from gateway.control.placement import Placement
from gateway.control.token_table import write_private
from gateway.control.tokens import PRINCIPALS, Tokens
from gateway.routing import iso_time
from tests.gateway.control.plane import MODEL, WHY, Plane

TOKEN = "0123456789abcdef" * 2
SIDECAR_TOKEN = "fedcba9876543210" * 2
TOKENS = {"admin": TOKEN, "sidecar": SIDECAR_TOKEN, "worker": "89abcdef01234567" * 2}
BEARER = {"authorization": f"Bearer {TOKEN}"}
ROUTE = f"/admin/v1/routes/{MODEL}"
VARIANTS = [
    {"name": "primary", "version": "1", "role": "primary", "weight_bp": 9_000},
    {"name": "canary", "version": "2", "role": "canary", "weight_bp": 1_000},
]


class Admin:
    """A client of an admin API with versions 1 and 2 of one model; recorder and workers live while it waits."""

    def __init__(self, plane: Plane, api: AdminApi) -> None:
        self.plane = plane
        self.app = api.app()

    def plain(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """One request as it is given."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with self.plane.alive():
                async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8081") as client:
                    return await client.request(method, path, **kwargs)

        return asyncio.run(send())

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """One request with the token; underscores in header names become dashes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.plain(method, path, json=body, headers={**BEARER, **named})

    def split(self, revision: int = 1) -> Any:
        """Version 2 gets a tenth."""
        body = {"variants": VARIANTS, "reason": "first tenth"}
        return self.send("PUT", ROUTE, body, if_match=f'"{revision}"')


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    """Two workers."""
    return Plane(tmp_path / "state")


@pytest.fixture
def admin(plane: Plane, tmp_path: Path) -> Admin:
    """The first route is made."""
    for version in ("1", "2"):
        (tmp_path / "models" / MODEL / version).mkdir(parents=True)
        (tmp_path / "models" / MODEL / version / "model.onnx").write_bytes(b"")
    placement = Placement(plane.engine, tmp_path / "models")

    async def begin() -> None:
        async with plane.alive():
            await placement.refresh()
            await plane.begin("1", "2")

    asyncio.run(begin())
    for name, token in TOKENS.items():
        write_private(plane.state_dir / f"{name}.token", token.encode())
    tokens = Tokens(plane.state_dir, PRINCIPALS)
    api = AdminApi(plane.engine, placement, plane.fleet, plane.state_dir, plane.ring_dir, tokens)
    return Admin(plane, api)


def refusal(reply: Any, status: int, code: str) -> str:
    """The text of a refusal, whose shape is held."""
    assert (reply.status_code, reply.json().get("code")) == (status, code), reply.text
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json()) - {"revision", "event", "changed"} == {"error", "code"}
    return str(reply.json()["error"])


def test_every_address_has_a_rule(admin: Admin) -> None:
    """The application's addresses and the table of rules are the same set."""
    served = {
        (method, address.path)
        for address in admin.app.routes
        if isinstance(address, Address)
        for method in (address.methods or set()) - {"HEAD"}
    }
    assert served == set(ADMIN_RULES)


def test_address_without_a_rule_is_no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that the table does not know fails as the application is made, named; so does a rule for nothing."""
    api = AdminApi(None, None, None, Path(), Path(), Tokens(None))  # type: ignore[arg-type]
    known = api.addresses()
    monkeypatch.setattr(api, "addresses", lambda: [*known, get("/admin/v1/secrets", api.healthz)])
    with pytest.raises(Unruled, match="GET /admin/v1/secrets has no rule"):
        api.app()
    monkeypatch.setattr(api, "addresses", lambda: known[1:])
    with pytest.raises(Unruled, match="without an address: GET /healthz"):
        api.app()


OPEN_ADDRESSES = {"/healthz", "/metrics"}


@pytest.mark.parametrize(("method", "path"), ADMIN_RULES, ids=lambda part: part.replace("/admin/v1", ""))
def test_token_is_needed(admin: Admin, method: str, path: str) -> None:
    """Without a token, or with another, all but the open addresses are refused before anything is looked at."""
    url = path.replace("{model}", "nobody")
    for headers in ({}, {"authorization": "Bearer nope"}, {"authorization": f"Basic {TOKEN}"}):
        reply = admin.plain(method, url, headers=headers)
        if path in OPEN_ADDRESSES:
            assert reply.status_code == 200
        else:
            assert "admin.token" in refusal(reply, 401, "unauthorized")
            assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8081", "127.0.0.1.evil.example", ""])
def test_foreign_host(admin: Admin, host: str) -> None:
    """A name that was made to point at loopback is refused, open addresses included."""
    refusal(admin.send("GET", ROUTE, host=host), 403, "forbidden")
    refusal(admin.send("GET", "/healthz", host=host), 403, "forbidden")


@pytest.mark.parametrize("host", ["localhost", "localhost:8081", "127.0.0.1", "[::1]", "[::1]:8081"])
def test_loopback_hosts(admin: Admin, host: str) -> None:
    """Every loopback name is served, with a port or without."""
    assert admin.send("GET", ROUTE, host=host).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8080", "127.0.0.1:8081"])
def test_foreign_origin(admin: Admin, origin: str) -> None:
    """A page of another origin is refused, of another port too."""
    refusal(admin.send("GET", ROUTE, origin=origin), 403, "forbidden")


def test_own_origin(admin: Admin) -> None:
    """A page that the listener itself serves may."""
    assert admin.send("GET", ROUTE, origin="http://127.0.0.1:8081").status_code == 200


@pytest.mark.parametrize("path", ["/", "/admin", "/admin/v1/routes/", f"{ROUTE}/", "/admin/v2/routes", "/v2"])
def test_not_an_address(admin: Admin, path: str) -> None:
    """What no rule matches is 404 in our shape; no redirect repeats a Host header."""
    reply = admin.plain("GET", path, headers=BEARER)
    refusal(reply, 404, "not_found")


def test_wrong_method(admin: Admin) -> None:
    """405 in our shape."""
    assert "DELETE" in refusal(admin.send("DELETE", ROUTE), 405, "method_not_allowed")


def test_route_is_shown_without_secrets(admin: Admin) -> None:
    """The document has revision (as ETag too), weights, states and who changed it; no salt, no buckets."""
    reply = admin.send("GET", ROUTE)
    assert reply.headers["etag"] == '"1"'
    shown = reply.json()
    assert shown["variants"] == [
        {"name": "primary", "version": "1", "role": "primary", "weight_bp": 10_000, "state": "ready"}
    ]
    assert (shown["revision"], shown["frozen"], shown["changed"]["reason"]) == (1, False, WHY.reason)
    assert set(shown) == {"model", "revision", "variants", "changed", "assign_by", "frozen", "latched"}
    assert admin.send("GET", "/admin/v1/routes").json() == {"routes": [shown]}
    assert "no" in refusal(admin.send("GET", "/admin/v1/routes/nobody"), 404, "unknown_model")


def test_change_is_answered_in_full(admin: Admin) -> None:
    """Set and shift: revision, generation, weights before and after, event, and who runs it."""
    assert admin.split().status_code == 200
    body = {"weights_bp": {"canary": 2_500}, "reason": "labels look fine"}
    reply = admin.send("POST", f"{ROUTE}/shift", body, if_match='"2"')
    assert (reply.status_code, reply.headers["etag"]) == (200, '"3"')
    answer = reply.json()
    assert (answer["revision"], answer["generation"]) == (3, admin.plane.fleet.generation)
    assert answer["before_bp"] == {"primary": 9_000, "canary": 1_000}
    assert answer["after_bp"] == {"primary": 7_500, "canary": 2_500}
    assert answer["event"] == admin.plane.engine.route(MODEL).changed.event
    assert {**answer["applied"], "ms": 0} == {"workers": 2, "of": 2, "ms": 0, "pending": []}


def test_change_needs_if_match(admin: Admin) -> None:
    """428 without, 412 with an old one: where the route stands, by whom, why, when and which event."""
    body = {"weights_bp": {"canary": 1}, "reason": "x"}
    assert "If-Match" in refusal(admin.send("POST", f"{ROUTE}/shift", body), 428, "precondition_required")
    admin.split()
    reply = admin.send("POST", f"{ROUTE}/shift", body, if_match='"1"')
    text = refusal(reply, 412, "revision_conflict")
    changed = admin.plane.engine.route(MODEL).changed
    at = iso_time(changed.at_ns)
    assert text == f"route m is at revision 2, you sent 1: changed by admin (first tenth) at {at}"
    assert reply.json()["changed"] == {"by": "admin", "reason": "first tenth", "at_ns": changed.at_ns}
    assert reply.json()["revision"] == 2
    assert reply.json()["event"] == changed.event


@pytest.mark.parametrize("value", ["*", '"one"', "", "-1", "1.0", "\u00b2", "9" * 5_000])
def test_if_match_that_is_no_revision(admin: Admin, value: str) -> None:
    """Anything but a number is refused as such."""
    reply = admin.plain(
        "POST",
        f"{ROUTE}/freeze",
        json={"reason": "x"},
        headers=[("authorization", f"Bearer {TOKEN}"), ("if-match", value.encode("latin-1"))],  # type: ignore[list-item]
    )
    assert "expected a revision number" in refusal(reply, 400, "invalid_request")


@pytest.mark.parametrize("value", ["1", '"1"', 'W/"1"', ' "1" '])
def test_if_match_as_clients_write_it(admin: Admin, value: str) -> None:
    """Quoted, weak or bare."""
    assert admin.send("POST", f"{ROUTE}/freeze", {"reason": "x"}, if_match=value).status_code == 200


@pytest.mark.parametrize("reason", [None, "", " \t"])
def test_change_needs_a_reason(admin: Admin, reason: str | None) -> None:
    """Absent or blank: refused, for loading too."""
    body = {} if reason is None else {"reason": reason}
    refusal(admin.send("POST", f"{ROUTE}/freeze", body, if_match="1"), 400, "reason_required")
    reply = admin.send("POST", f"/admin/v1/models/{MODEL}/load", {**body, "version": "2"})
    refusal(reply, 400, "reason_required")


@pytest.mark.parametrize(
    "reason",
    [
        "\x1b[2Jgone",
        "two\nlines",
        "tab\tin it",
        "csi \x9b2J",
        "a\x7fb",
        "a\x00b",
        "gnp.\u202egood",
        "a\u2028b",
    ],
)
def test_reason_is_one_line_of_plain_text(admin: Admin, reason: str) -> None:
    """Control characters would act on the terminals where it is shown: refused, naming the one found."""
    for path, body in ((f"{ROUTE}/freeze", {}), (f"/admin/v1/models/{MODEL}/load", {"version": "2"})):
        reply = admin.send("POST", path, {**body, "reason": reason}, if_match="1")
        assert "control character" in refusal(reply, 400, "invalid_request")


def test_blanks_around_a_reason_are_none_of_it(admin: Admin) -> None:
    """A file's last newline does no harm."""
    body = {"reason": " because \n"}
    assert admin.send("POST", f"{ROUTE}/freeze", body, if_match="1").status_code == 200
    assert admin.send("GET", ROUTE).json()["changed"]["reason"] == "because"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"reason": "x", "weight_bp": {"canary": 1}}', "weight_bp"),
        ('{"reason": "x"}', "weights_bp"),
        ('{"reason": "x", "weights_bp": {"canary": 1.5}}', "int"),
        ('{"reason": "x", "weights_bp": {"canary": true}}', "int"),
        ('{"reason": 7, "weights_bp": {}}', "reason"),
        ("[]", "object"),
        ("", "truncated"),
        ("{" * 100_000, "request body"),
        ('{"reason": "\\ud800", "weights_bp": {"canary": 1}}', "request body"),
    ],
    ids=str.__len__,
)
def test_body_is_held_against_its_form(admin: Admin, body: str, said: str) -> None:
    """A misspelt, missing or odd field is refused, naming it."""
    reply = admin.plain("POST", f"{ROUTE}/shift", content=body, headers={**BEARER, "if-match": "1"})
    assert said in refusal(reply, 400, "invalid_request")


@pytest.mark.parametrize(
    "change", [{"role": "boss"}, {"version": "01"}, {"version": "latest"}, {"name": "a/b"}, {"weight_bp": -1}]
)
def test_variants_are_held_against_their_form(admin: Admin, change: dict[str, object]) -> None:
    """A variant that cannot be is a 400, never an accident."""
    body = {"variants": [VARIANTS[0], {**VARIANTS[1], **change}], "reason": "x"}
    reply = admin.send("PUT", ROUTE, body, if_match="1")
    assert (reply.status_code, reply.json()["code"]) in {(400, "invalid_request"), (400, "change_invalid")}


def test_dry_run(admin: Admin) -> None:
    """A dry run shows what would be and has no ETag; nothing moves."""
    reply = admin.send("PUT", f"{ROUTE}?dry_run=true", {"variants": VARIANTS, "reason": "look"}, if_match="1")
    assert reply.status_code == 200
    assert (reply.json()["dry_run"], reply.json()["after_bp"]) == (True, {"primary": 9_000, "canary": 1_000})
    assert "etag" not in reply.headers
    assert admin.send("GET", ROUTE).json()["revision"] == 1


def test_pending_workers_make_it_202(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change is made, and those who do not run it yet are named."""
    monkeypatch.setattr(committing, "APPLY_TIMEOUT_S", 0.05)
    admin.plane.absent.add(1)
    reply = admin.split()
    assert (reply.status_code, reply.json()["applied"]["pending"]) == (202, [1])


def test_promote_rollback_freeze_thaw(admin: Admin) -> None:
    """A rollout to its end and back; a hold refuses all but its end, and hides no rollback target."""
    admin.split()
    for verb, extra, revision in (("promote", {"variant": "canary"}, 3), ("freeze", {}, 4)):
        reply = admin.send("POST", f"{ROUTE}/{verb}", {"reason": "x", **extra}, if_match=str(revision - 1))
        assert (reply.status_code, reply.json()["revision"]) == (200, revision)
    for verb in ("freeze", "rollback"):
        refusal(admin.send("POST", f"{ROUTE}/{verb}", {"reason": "x"}, if_match="4"), 409, "state_conflict")
    assert admin.send("POST", f"{ROUTE}/thaw", {"reason": "x"}, if_match="4").status_code == 200
    refusal(admin.send("POST", f"{ROUTE}/thaw", {"reason": "x"}, if_match="5"), 409, "state_conflict")
    reply = admin.send("POST", f"{ROUTE}/rollback", {"reason": "worse"}, if_match="5")
    assert reply.json()["after_bp"] == {"primary": 9_000, "canary": 1_000}
    reply = admin.send("POST", f"{ROUTE}/rollback", {"reason": "all", "to_revision": 1}, if_match="6")
    assert reply.json()["after_bp"] == {"primary": 10_000}
    body = {"reason": "x", "to_revision": 99}
    text = refusal(admin.send("POST", f"{ROUTE}/rollback", body, if_match="7"), 400, "change_invalid")
    assert "it has 1 to 7" in text
    kept = admin.send("GET", f"{ROUTE}/history").json()["revisions"]
    assert [r["revision"] for r in kept] == [7, 6, 5, 4, 3, 2, 1]
    assert "salt" not in kept[0]


def test_nothing_to_roll_back_to(admin: Admin) -> None:
    """The first revision has none before it."""
    reply = admin.send("POST", f"{ROUTE}/rollback", {"reason": "x"}, if_match="1")
    assert "no earlier revision" in refusal(reply, 409, "state_conflict")


def test_models_and_their_states(admin: Admin) -> None:
    """Every version with its state in each worker, its weight, and why it failed."""
    admin.plane.failed[1, "2"] = "bad file"
    admin.plane.step()
    shown = admin.send("GET", f"/admin/v1/models/{MODEL}").json()
    assert shown["versions"] == [
        {
            "version": "1",
            "state": "ready",
            "reason": None,
            "weight_bp": 10_000,
            "workers": {"0": "ready", "1": "ready"},
        },
        {
            "version": "2",
            "state": "failed",
            "reason": "bad file",
            "weight_bp": None,
            "workers": {"0": "ready", "1": "failed"},
        },
    ]
    assert admin.send("GET", "/admin/v1/models").json() == {"models": [shown], "problems": []}
    refusal(admin.send("GET", "/admin/v1/models/nobody"), 404, "unknown_model")
    refusal(admin.send("POST", "/admin/v1/models/nobody/load", {"reason": "x"}), 404, "unknown_model")


def test_load_unload_refresh(admin: Admin) -> None:
    """Version 2 goes and comes back; a new directory is seen at once on request."""
    unload = {"reason": "memory", "version": "2"}
    reply = admin.send("POST", f"/admin/v1/models/{MODEL}/unload", unload)
    assert (reply.status_code, reply.json()["version"]) == (200, "2")
    assert admin.send("GET", f"/admin/v1/models/{MODEL}").json()["versions"][1]["state"] == "absent"
    reply = admin.send("POST", f"/admin/v1/models/{MODEL}/load", {"reason": "needed"})
    assert (reply.status_code, reply.json()["version"]) == (200, "2")
    reply = admin.send("POST", f"/admin/v1/models/{MODEL}/unload", {"reason": "x", "version": "1"})
    refusal(reply, 409, "state_conflict")
    assert admin.plain("POST", "/admin/v1/models/refresh", headers=BEARER).json() == {
        "models": 1,
        "versions": 2,
        "problems": [],
    }


def test_whole_models_are_loaded_and_unloaded(admin: Admin) -> None:
    """The answer is how its versions stand; a version beside `whole` is refused. The worker may do this and no more."""
    worker = f"Bearer {TOKENS['worker']}"
    whole = {"whole": True, "reason": "asked"}
    reply = admin.send("POST", f"/admin/v1/models/{MODEL}/unload", whole, authorization=worker)
    assert (reply.status_code, [v["state"] for v in reply.json()["versions"]]) == (200, ["absent", "absent"])
    reply = admin.send("POST", f"/admin/v1/models/{MODEL}/load", whole, authorization=worker)
    assert (reply.status_code, [v["state"] for v in reply.json()["versions"]]) == (200, ["ready", "ready"])
    reply = admin.send("POST", f"/admin/v1/models/{MODEL}/load", {**whole, "version": "1"})
    assert "not both" in refusal(reply, 400, "change_invalid")
    refusal(admin.send("POST", "/admin/v1/models/nobody/load", whole), 404, "unknown_model")
    for (method, path), rule in ADMIN_RULES.items():
        if path not in OPEN_ADDRESSES and rule.scope != LOAD:
            reply = admin.send(method, path.replace("{model}", MODEL), {}, authorization=worker)
            assert "the worker has load" in refusal(reply, 403, "forbidden")


def test_fleet_and_audit(admin: Admin) -> None:
    """Workers and sources are shown."""
    shown = admin.send("GET", "/admin/v1/fleet").json()
    assert [w["state"] for w in shown["workers"]] == ["serving", "serving"]
    assert shown["generation"] == admin.plane.fleet.generation
    assert admin.send("GET", "/admin/v1/audit/status").status_code == 200
    assert admin.plain("GET", "/healthz").json() == {"ok": True}


def count_done(words: memoryview, done: int, fast: int) -> None:
    """One worker's counts of a version: answered in a second, so many of them within 0.1 ms."""
    cell = words_of.VARIANT0
    words[words_of.DONE] = words[cell + words_of.VARIANT_DONE] = done
    words[cell], words[cell + 1] = len("primary"), int.from_bytes(b"primary", "little")
    words[cell + words_of.VARIANT_NS] = 1_000_000_000
    words[cell + words_of.VARIANT_LATENCY0] = fast
    words[cell + words_of.VARIANT_LATENCY0 + 15] = done - fast


def test_metrics_parse(admin: Admin) -> None:
    """/metrics needs no token, is what Prometheus reads, and sums what the workers count."""
    plane = admin.plane
    admin.split()
    slot = next(d.slot for d in plane.engine.state.serving.versions if d.version == "1")
    for index, (done, fast) in enumerate(((3, 2), (4, 4))):
        count_done(plane.fleet.slot(index, slot), done, fast)
    (plane.state_dir / "forwarder").mkdir()
    (plane.state_dir / "forwarder" / "status.json").write_text('{"lag_events": 5, "retries": "many"}')
    reply = admin.plain("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    samples = {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(reply.text)
        for s in family.samples
    }
    one = (("model", MODEL), ("version", "1"))
    assert samples["tidegate_requests_total", (("kind", "done"), *one)] == 7
    primary = (("model", MODEL), ("variant", "primary"), ("version", "1"))
    within = (("le", "0.0001"), *primary)
    assert samples["tidegate_request_seconds_bucket", within] == 6
    assert samples["tidegate_request_seconds_count", primary] == 7
    assert samples["tidegate_request_seconds_sum", primary] == 2
    assert samples["tidegate_version_ready_workers", one] == 2
    assert (
        samples["tidegate_route_weight_bp", (("model", MODEL), ("variant", "canary"), ("version", "2"))]
        == 1e3
    )
    assert samples["tidegate_route_revision", (("model", MODEL),)] == 2
    assert samples["tidegate_worker_state", (("worker", "1"),)] == 2
    assert samples["tidegate_forwarder_lag_events", ()] == 5
    names = {name for name, _ in samples}
    assert "tidegate_forwarder_retries" not in names
    assert all(re.fullmatch(r"tidegate_[a-z_]+", name) for name in names)


def test_accident_gives_nothing_away(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody meant is 500 without details."""

    def broken(model: str) -> None:
        raise RuntimeError("/srv/secret/path")

    monkeypatch.setattr(admin.plane.engine, "route", broken)
    assert refusal(admin.send("GET", ROUTE), 500, "internal") == "internal error"
