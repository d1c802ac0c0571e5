"""The guard before every address of a listener: whose site asks, who asks, and whether they may.

addresses.built -> **guarding** -> handlers. What asks over a browser is held against two attacks: a page of another
site (Origin, Sec-Fetch-Site, a content type that needs no preflight), and a name that was made to point at this host
(Host). A request with a token is no such page: it cannot know one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.addresses import Handler
from gateway.control.access import FEEDBACK, LOAD, OPEN, Principal, Rule, allows, check
from gateway.control.tokens import ADMIN, Tokens
from gateway.control.tokens import FEEDBACK as FEEDBACK_TOKEN
from gateway.control.tokens import PUBLISH as PUBLISH_TOKEN
from gateway.errors import Forbidden, InvalidRequest

CERTIFICATE = "tidegate.certificate"
"""Among a scope's extensions: names of a verified client certificate."""
NOBODY = Principal("anonymous", frozenset())
_OWN_SITE = frozenset(("same-origin", "none"))
_FORWARDED = frozenset(("forwarded", "x-forwarded-for", "x-real-ip"))
"""Who has one of these comes from elsewhere, through a proxy on this host: its Host is whatever its client likes."""
_ASKS_FOR = {FEEDBACK: FEEDBACK_TOKEN, LOAD: PUBLISH_TOKEN}
"""Whose token a refusal names."""


class Guard:
    """The rules of one listener, held.

    Args:
        tokens: that this listener knows.
        on_loopback: only this host reaches it.
        hosts: names that it is reached by, besides those of loopback.
        every: whether open addresses, too, answer to its own names only (the admin listener).

    Threading: the loop thread.
    """

    def __init__(
        self, tokens: Tokens, *, on_loopback: bool, hosts: Collection[str] = (), every: bool = False
    ) -> None:
        self._tokens = tokens
        self._on_loopback = on_loopback
        self._hosts = frozenset(name.lower() for name in hosts)
        self._named = on_loopback or bool(hosts)
        self._every = every

    def __call__(self, method: str, path: str, rule: Rule, handler: Handler) -> Handler:
        """The handler behind its rule. Of what is open to all nothing is asked: it stays as it is."""
        if rule.scope == OPEN and not self._every:
            return handler

        async def guarded(request: Request) -> Response:
            if self._every:
                self.check_site(request)
            if rule.scope != OPEN:
                request.state.principal = self._admit(request, rule, (method, path))
            return await handler(request)

        return guarded

    def _admit(self, request: Request, rule: Rule, address: tuple[str, str]) -> Principal:
        """Who asks, and that they may."""
        header = request.headers.get("authorization")
        model = request.path_params.get("model")
        certified = None if header is not None else self._certified(request)
        if rule.open_on_loopback and self._on_loopback and _FORWARDED.isdisjoint(request.headers):
            known = certified or (header and self._tokens.of(header.encode("latin-1")))
            if known and allows(known, rule.scope, model):
                return known
            if not self._every:
                self.check_site(request)
                if rule.scope == FEEDBACK:
                    _check_json(request)
            return NOBODY
        needed = ADMIN if self._every else _ASKS_FOR.get(rule.scope, FEEDBACK_TOKEN)
        principal = certified or self._tokens.find(header, needed)
        check(principal, rule, address, model)
        return principal

    def _certified(self, request: Request) -> Principal | None:
        """Whom a verified client certificate names."""
        found = request.scope.get("extensions", {}).get(CERTIFICATE)
        return None if found is None else self._tokens.of_certificate(found["names"])

    def check_site(self, request: Request) -> None:
        """Refuse names that are not this listener's, and pages of other sites.

        Raises:
            Forbidden: says which.
        """
        given = request.headers.get("host", "")
        host = given.rsplit(":", 1)[0] or given
        if self._named and not (_is_loopback(host) or _is_loopback(given) or host.lower() in self._hosts):
            what = "admin listener" if self._every else "data listener, without a token,"
            names = "loopback names and its own only" if self._hosts else "loopback names only"
            msg = f"the {what} answers to {names}, not to {host[:100]!r}"
            raise Forbidden(msg)
        origin = request.headers.get("origin")
        foreign = origin is not None and origin.partition("//")[2].lower() != given.lower()
        if foreign or request.headers.get("sec-fetch-site", "none").lower() not in _OWN_SITE:
            msg = "requests from web pages of other origins are refused"
            raise Forbidden(msg)


def _is_loopback(host: str) -> bool:
    """Whether a Host is this host's: an address cannot be rebound as a name can."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_json(request: Request) -> None:
    """A page of another site cannot send this content type without asking first, which nobody answers."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        msg = f"content-type is {kind[:80]!r}; expected application/json"
        raise InvalidRequest(msg)
