"""Act: carries decisions to the gateway over its admin API. The only place where shadow changes anything.

A decision is a verdict in the log first and an act afterwards. The act is a compare-and-set on the route's revision:
what a person changed meanwhile is looked at, never overwritten. Whether the decision is in effect is read from the
log's control events, so that a lost reply does no harm.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx
import msgspec

log = logging.getLogger("tidegate.sidecar")

TIMEOUT_S = 5.0
REASON_CHARS = 1000
"""The gateway takes no longer reason."""
TOKEN_FILE = "sidecar.token"
_NO_ANSWER = (httpx.HTTPError, OSError, ValueError, KeyError, TypeError, AttributeError)
"""No token or listener yet, or an answer that is none of a gateway's."""


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
        transport: tests give their own.

    Threading: one thread; each call takes at most a few seconds.
    """

    def __init__(self, url: str, state_dir: Path, transport: httpx.BaseTransport | None = None) -> None:
        self._token_file = state_dir / TOKEN_FILE
        # Certificates are read at once or never, and a plain listener has none.
        verify = url.startswith("https:")
        self._http = httpx.Client(
            base_url=url, timeout=TIMEOUT_S, trust_env=False, transport=transport, verify=verify
        )

    def roll_back(self, pending: Pending, at_ns: int) -> Acted:
        """Take a version's traffic away and latch it.

        Args:
            at_ns: time of the newest tick that the evidence rests on.
        """
        try:
            route = self._send("GET", f"/admin/v1/routes/{pending.model}")
            if route.status_code != 200:
                return _refusal(route)
            body = route.json()
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
                if route.status_code != 200:
                    found[model] = _refusal(route)
                    continue
                body = route.json()
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

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def _send(
        self, method: str, path: str, *, revision: int | None = None, body: dict[str, Any] | None = None
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {self._token_file.read_text().strip()}"}
        if revision is not None:
            headers["if-match"] = f'"{revision}"'
        return self._http.request(method, path, headers=headers, json=body)


def _refusal(reply: httpx.Response) -> Acted:
    try:
        says = str(reply.json().get("error", ""))
    except (ValueError, AttributeError):
        says = ""
    if reply.status_code == 412:
        return Acted("conflict", says)
    if reply.status_code >= 500:
        return Acted("unreachable", says or f"status {reply.status_code}")
    return Acted("refused", says or f"status {reply.status_code}")
