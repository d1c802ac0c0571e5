"""Addresses as data: method, path, handler, body and what it does; an application is built from them and the rules.

admin_routes, admin_models, admin -> **addresses** -> Starlette; admin_openapi makes the listener's description from the
same table. Rules stand apart (`gateway.control.access`), and both must name the same addresses: one without a rule, or
a rule without its address, is no build.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control.access import Rule

Handler = Callable[[Request], Awaitable[Response]]
Guard = Callable[[str, str, Rule, Handler], Handler]
"""(method, path, rule, handler) to the handler that holds the rule."""


class Unruled(LookupError):
    """An address has no rule, or a rule no address: the application is not built."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    body: type[msgspec.Struct] | None = None
    """What the request carries; None: nothing is read."""
    revised: bool = False
    """A change of a route: needs If-Match, and takes `idempotency-key`."""
    query: tuple[str, ...] = ()
    """Parameters that it takes."""

    @property
    def says(self) -> str:
        """What it does, in the handler's own words."""
        return (self.handler.__doc__ or "").strip().splitlines()[0]


def get(path: str, handler: Handler, *query: str) -> Address:
    """An address that changes nothing."""
    return Address(method="GET", path=path, handler=handler, query=query)


def post(
    path: str, handler: Handler, body: type[msgspec.Struct], *, revised: bool = False, dry: bool = False
) -> Address:
    """An address that changes something; `dry`: it takes `dry_run`, as those that are `revised` do."""
    query = ("dry_run",) if revised or dry else ()
    return Address(method="POST", path=path, handler=handler, body=body, revised=revised, query=query)


def built(addresses: Iterable[Address], rules: Mapping[tuple[str, str], Rule], guard: Guard) -> list[Route]:
    """The routes of an application.

    Raises:
        Unruled: addresses and rules are not of the same set.
    """
    return ruled(
        [Route(a.path, a.handler, methods=[a.method]) for a in addresses],
        rules,
        guard,
    )


def ruled(routes: Iterable[Route], rules: Mapping[tuple[str, str], Rule], guard: Guard) -> list[Route]:
    """The same routes, each behind its rule.

    Raises:
        Unruled: routes and rules are not of the same set.
    """
    left = dict(rules)
    made = []
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            rule = left.pop((method, route.path), None)
            if rule is None:
                msg = f"{method} {route.path} has no rule; add it to gateway/control/access.py"
                raise Unruled(msg)
            made.append(Route(route.path, guard(method, route.path, rule, route.endpoint), methods=[method]))
    if left:
        msg = f"rules without an address: {', '.join(' '.join(pair) for pair in left)}"
        raise Unruled(msg)
    return made
