"""What a web page could send: to a listener on loopback, through a rebound name, without a token. Nothing changes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import orjson
import pytest

from gateway.api.crowd import Limits
from gateway.api.guarding import Guard
from gateway.api.infer import DataApi
from gateway.audit.event import Feedback
from gateway.audit.identity import EventId
from gateway.control.access import ADMIN_RULES
from gateway.control.tokens import CLIENTS, FEEDBACK, Tokens, ensure_token
from tests.gateway.control.plane import MODEL
from tests.gateway.path import Path_
from tests.gateway.test_admin import BEARER, Admin
from tests.gateway.test_admin import admin as admin  # a fixture
from tests.gateway.test_admin import plane as plane  # a fixture

LABELS = orjson.dumps({"labels": [{"id": str(EventId(7, 9, 3)), "value": 1}]})
JSON = "application/json"
HOME = "127.0.0.1:8080"


def label(
    tmp_path: Path, *hosts: str, body: bytes = LABELS, **fields: str
) -> tuple[httpx.Response, list[Feedback]]:
    """One POST of a label to a data listener on loopback; its answer, and what stands in the log."""

    async def run() -> tuple[httpx.Response, list[Feedback]]:
        path = Path_(tmp_path)
        guard = Guard(Tokens(tmp_path, CLIENTS), on_loopback=True, hosts=hosts)
        api = DataApi(path.core, Limits(), "spool", guard)
        sent = {"host": HOME, "content-type": JSON}
        sent |= {name.replace("_", "-"): value for name, value in fields.items()}
        transport = httpx.ASGITransport(api.app())
        try:
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOME}") as client:
                reply = await client.post("/v2/models/sum/feedback", content=body, headers=sent)
            return reply, [event for event in path.events() if isinstance(event, Feedback)]
        finally:
            path.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    "fields",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3000"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"host": "evil.example:8080", "origin": "http://evil.example:8080"},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "10.1.2.3"},
        {"host": ""},
    ],
    ids=str,
)
def test_page_of_another_site_sends_no_labels(tmp_path: Path, fields: dict[str, str]) -> None:
    """A foreign origin, a foreign or rebound name: refused before the body is looked at, and nothing is kept."""
    reply, kept = label(tmp_path, **fields)
    assert (reply.status_code, reply.json()["code"], kept) == (403, "forbidden", [])


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain;charset=UTF-8",
        "multipart/form-data",
        "application/x-www-form-urlencoded",
        "",
    ],
)
def test_labels_need_a_type_that_pages_cannot_send(tmp_path: Path, kind: str) -> None:
    """What a page may send without asking first is no JSON, whatever the body; the refusal says what was expected."""
    reply, kept = label(tmp_path, content_type=kind)
    assert (reply.status_code, reply.json()["code"], kept) == (400, "invalid_request", [])
    assert "expected application/json" in reply.json()["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"host": "localhost"},
        {"host": "[::1]:8080"},
        {"host": "127.0.0.2"},
        {"origin": f"http://{HOME}", "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
        {"content_type": "application/json; charset=utf-8"},
        {"authorization": "Basic dTpw"},
        {"authorization": "Bearer unknown"},
    ],
    ids=str,
)
def test_clients_of_this_host_need_nothing(tmp_path: Path, fields: dict[str, str]) -> None:
    """Whoever reaches loopback by its own names may, as before; a token that is none does no harm."""
    reply, kept = label(tmp_path, **fields)
    assert reply.status_code == 202
    assert [event.principal for event in kept] == ["anonymous"]


@pytest.mark.parametrize("field", ["x_forwarded_for", "forwarded", "x_real_ip"])
def test_client_behind_a_proxy_is_not_this_host(tmp_path: Path, field: str) -> None:
    """Also where `data.proxies` is forgotten: its Host is whatever the client likes, loopback's names among them."""
    said = "for=203.0.113.9" if field == "forwarded" else "203.0.113.9"
    reply, kept = label(tmp_path, host="localhost", **{field: said})
    assert (reply.status_code, reply.json()["code"], kept) == (401, "unauthorized", [])
    token = ensure_token(tmp_path, FEEDBACK)
    reply, kept = label(tmp_path, host="localhost", authorization=f"Bearer {token}", **{field: said})
    assert (reply.status_code, len(kept)) == (202, 1)


def test_own_name_is_configured(tmp_path: Path) -> None:
    """`data.hosts`: behind a proxy that passes its Host on."""
    assert label(tmp_path, "gateway.example", host="Gateway.Example:443")[0].status_code == 202
    assert label(tmp_path, "gateway.example", host="evil.example")[0].status_code == 403


def test_token_stands_for_itself(tmp_path: Path) -> None:
    """A page does not know one: whoever has it may come by any name and with any type."""
    token = ensure_token(tmp_path, FEEDBACK)
    reply, kept = label(
        tmp_path, authorization=f"Bearer {token}", host="gateway.example", content_type="text/plain"
    )
    assert reply.status_code == 202
    assert [event.principal for event in kept] == ["feedback"]


CHANGING = [pair for pair in ADMIN_RULES if pair[0] != "GET"]
FOREIGN = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"host": "evil.example:8081"},
    {"host": "evil.example:8081", "origin": "http://evil.example:8081", "sec-fetch-site": "same-origin"},
]


@pytest.mark.parametrize(("method", "path"), CHANGING, ids=lambda part: part.replace("/admin/v1", ""))
def test_nothing_changes_without_a_token_or_from_another_site(admin: Admin, method: str, path: str) -> None:
    """Whatever the body and its type: state, tokens and log stay as they were; a foreign page with a token, too."""
    before = state_of(admin)
    url = path.replace("{model}", MODEL).replace("{token}", "0" * 8)
    bodies = {
        JSON: b'{"reason": "x", "weights_bp": {"canary": 1}}',
        "text/plain": b'{"reason": "x"}',
        "application/x-www-form-urlencoded": b"reason=x",
    }
    for kind, body in bodies.items():
        sent = {"content-type": kind, "if-match": "1"}
        reply = admin.plain(method, url, content=body, headers=sent)
        assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
        for foreign in FOREIGN:
            for token in ({}, BEARER):
                reply = admin.plain(method, url, content=body, headers={**sent, **token, **foreign})
                assert (reply.status_code, reply.json()["code"]) == (403, "forbidden"), foreign
    assert state_of(admin) == before


def state_of(admin: Admin) -> object:
    """All that a change could have changed: control's state, its files, and what it logged."""
    plane = admin.plane
    files = {
        path: path.read_bytes()
        for path in (plane.state_dir, plane.path.parent)
        for path in path.iterdir()
        if path.is_file()
    }
    return plane.engine.state, files, plane.writer.ring.committed
