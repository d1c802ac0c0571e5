"""Act: carries decisions to the gateway over its admin API. The only place where shadow changes anything.

A decision is a verdict in the log first and an act afterwards. The act is a compare-and-set on the route's revision:
what a person changed meanwhile is looked at, never overwritten. Whether the decision is in effect is read from the
log's control events, so that a lost reply does no harm.
"""

from __future__ import annotations

import http.client
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

log = logging.getLogger("tidegate.sidecar")

TIMEOUT_S = 5.0
REASON_CHARS = 1000
"""The gateway takes no longer reason."""
TOKEN_FILE, PUBLIC = "sidecar.token", "admin.pem"
_NO_ANSWER = (http.client.HTTPException, OSError, ValueError, KeyError, TypeError, AttributeError)
"""No token or listener yet, or an answer that is none of a gateway's."""


class Reply(NamedTuple):
    """An HTTP reply: status and body."""

    status: int
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether it was done."""
        return 200 <= self.status < 300

    def content(self) -> Any:
        """The body, which is JSON; raises ValueError when it is not."""
        return json.loads(self.body)


Exchange = Callable[[str, str, Mapping[str, str], bytes | None], Reply]
"""Sends method, path, headers and body; raises one of `_NO_ANSWER`."""


class Pending(msgspec.Struct, frozen=True):
    """A rollback that was decided and is not in effect yet. `event` is the decision's id in the log."""

    model: str
    rollout: int
    variant: str
    version: str
    says: str
    event: str


class Acted(msgspec.Struct, frozen=True):
    """What came of it: done | nothing_to_do | conflict | refused | unreachable, and the gateway's words."""

    outcome: str
    says: str = ""


class Actor:
    """Speaks to the admin API as the sidecar.

    Args:
        url: the admin listener.
        state_dir: where control keeps the sidecar's token.
        exchange: what sends a request there; tests give their own.

    Threading: one thread; each call takes at most a few seconds.
    """

    def __init__(self, url: str, state_dir: Path, exchange: Exchange | None = None) -> None:
        self._token_file = state_dir / TOKEN_FILE
        self._exchange = exchange or _exchange_with(url, state_dir / PUBLIC)

    def roll_back(self, pending: Pending, at_ns: int, read_revision: int) -> Acted:
        """Take a version's traffic away and latch it.

        Args:
            at_ns: time of the newest tick that the evidence rests on.
            read_revision: the newest of the route that was read in the log. One beyond it is someone's answer to what
                led to this decision, or to something else: a conflict, until the log has been read so far.
        """
        try:
            route = self._send("GET", f"/admin/v1/routes/{pending.model}")
            if route.status != 200:
                return _refusal(route)
            body = route.content()
            variant = next(
                (
                    v["name"]
                    for v in body["variants"]
                    if v["role"] == "canary" and v["version"] == pending.version and v.get("weight_bp")
                ),
                None,
            )
            if variant is None:
                return Acted("nothing_to_do")
            if body["revision"] > read_revision:
                says = f"route {pending.model} is at revision {body['revision']}, the log was read to {read_revision}"
                return Acted("conflict", says)
            reply = self._send(
                "POST",
                f"/admin/v1/routes/{pending.model}/rollback",
                revision=body["revision"],
                body={
                    "variant": variant,
                    "reason": pending.says[:REASON_CHARS],
                    "evidence": {"event": pending.event, "at_ns": at_ns},
                },
            )
        except _NO_ANSWER as exc:
            return Acted("unreachable", f"{type(exc).__name__}: {exc}")
        return Acted("done") if reply.is_success else _refusal(reply)

    def renew_leases(self, models: dict[str, frozenset[str]]) -> dict[str, Acted]:
        """Renew the lease of the canaries of some models.

        Args:
            models: by name, the versions whose evidence is held against them: a route that gives weight to one of
                them is not renewed.
        """
        found: dict[str, Acted] = {}
        for model, condemned in models.items():
            try:
                route = self._send("GET", f"/admin/v1/routes/{model}")
                if route.status != 200:
                    found[model] = _refusal(route)
                    continue
                body = route.content()
                held = [v for v in body["variants"] if v["role"] == "canary" and v.get("weight_bp")]
                if not held or any(v["version"] in condemned for v in held):
                    continue
                reply = self._send(
                    "POST",
                    f"/admin/v1/routes/{model}/lease",
                    revision=body["revision"],
                    body={"reason": "the sidecar watches"},
                )
                found[model] = Acted("done") if reply.is_success else _refusal(reply)
            except _NO_ANSWER as exc:
                found[model] = Acted("unreachable", f"{type(exc).__name__}: {exc}")
        return found

    def _send(
        self, method: str, path: str, *, revision: int | None = None, body: dict[str, Any] | None = None
    ) -> Reply:
        headers = {"authorization": f"Bearer {self._token_file.read_text().strip()}"}
        if revision is not None:
            headers["if-match"] = f'"{revision}"'
        if body is None:
            return self._exchange(method, path, headers, None)
        headers["content-type"] = "application/json"
        return self._exchange(method, path, headers, json.dumps(body).encode())


def _exchange_with(url: str, public: Path) -> Exchange:
    """A connection for each request: there is one every few seconds. The standard library's, which is there at once.

    Over TLS the listener is known by its certificate, which control leaves in the state directory.
    """
    parts = urlsplit(url)

    def connected() -> http.client.HTTPConnection:
        if parts.scheme != "https":
            return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(public)
        return http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=TIMEOUT_S, context=context
        )

    def exchange(method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        connection = connected()
        try:
            connection.request(method, path, body, dict(headers))
            reply = connection.getresponse()
            return Reply(reply.status, reply.read())
        finally:
            connection.close()

    return exchange


def _refusal(reply: Reply) -> Acted:
    try:
        says = str(reply.content().get("error", ""))
    except (ValueError, AttributeError):
        says = ""
    if reply.status == 412:
        return Acted("conflict", says)
    if reply.status >= 500:
        return Acted("unreachable", says or f"status {reply.status}")
    return Acted("refused", says or f"status {reply.status}")
