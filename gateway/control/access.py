"""Who may do what: scopes, the principals that hold them, and one rule for every address of both listeners. Pure.

api.admin, api.infer -> **access**. Deny by default: an address without a rule is no build (`gateway.api.addresses`), a
principal without the scope is refused, and what is asked for is the matched address, never the text of a URL. Scopes
name a model where they are about one: `shift:flights`, or `shift:*` for all.
"""

from __future__ import annotations

import msgspec

from gateway.errors import Forbidden

OPEN = "open"
"""Needs nothing."""
READ, AUDIT, EVERYTHING = "read", "audit", "admin"
SHIFT, ROLLBACK, LEASE, PUBLISH, LOAD = "shift", "rollback", "lease", "publish", "load"
INFER, FEEDBACK, FORCE = "infer", "feedback", "force"

PLAIN = (READ, AUDIT, EVERYTHING)
"""Scopes that are about no model. `admin` holds every other, and alone makes tokens."""
OF_MODELS = (SHIFT, ROLLBACK, LEASE, PUBLISH, LOAD, INFER, FEEDBACK, FORCE)
"""Scopes that are for a model, `WORD:MODEL`, or for all, `WORD:*`."""
BARE = (ROLLBACK, LEASE, LOAD)
"""Of those the ones that the gateway's own processes hold; without a model they are for all."""
HELD_BY = {ROLLBACK: (SHIFT,), LEASE: (SHIFT,), LOAD: (PUBLISH,)}
"""Scopes that come with a wider one: who may shift a model's traffic may take it back."""


class Principal(msgspec.Struct, frozen=True):
    """Who asks, as their token says."""

    name: str
    """As it stands in the log: `admin`, `sidecar`, or `token:NAME` of one in tokens.toml."""
    scopes: frozenset[str]
    token_id: str = ""
    """Of the token; empty for those that the gateway makes for itself."""
    automaton: bool = False
    """No person: bound by a route's bounds, and may not lift what holds it."""

    def forces(self, model: str) -> bool:
        """Whether it may name the variant of a model that answers."""
        return allows(self, FORCE, model)


class Rule(msgspec.Struct, frozen=True):
    """What an address needs."""

    scope: str
    people: bool = False
    """A person decides this: tokens of automata are refused, whatever their scopes."""
    open_on_loopback: bool = False
    """Whoever reaches a listener on loopback may, without a token."""


_MODELS, _ROUTES = "/admin/v1/models/{model}", "/admin/v1/routes/{model}"

ADMIN_RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/healthz"): Rule(OPEN),
    ("GET", "/metrics"): Rule(READ, open_on_loopback=True),
    ("GET", "/admin/v1/routes"): Rule(READ),
    ("GET", _ROUTES): Rule(READ),
    ("GET", _ROUTES + "/history"): Rule(READ),
    ("PUT", _ROUTES): Rule(SHIFT),
    ("POST", _ROUTES + "/shift"): Rule(SHIFT),
    ("POST", _ROUTES + "/promote"): Rule(SHIFT),
    ("POST", _ROUTES + "/rollback"): Rule(ROLLBACK),
    ("POST", _ROUTES + "/rearm"): Rule(SHIFT, people=True),
    ("POST", _ROUTES + "/lease"): Rule(LEASE),
    ("POST", _ROUTES + "/freeze"): Rule(SHIFT),
    ("POST", _ROUTES + "/thaw"): Rule(SHIFT, people=True),
    ("GET", _ROUTES + "/bounds"): Rule(READ),
    ("POST", _ROUTES + "/bounds"): Rule(SHIFT, people=True),
    ("POST", _MODELS + "/stop"): Rule(SHIFT),
    ("POST", _MODELS + "/resume"): Rule(SHIFT, people=True),
    ("GET", "/admin/v1/models"): Rule(READ),
    ("POST", "/admin/v1/models/refresh"): Rule(PUBLISH),
    ("GET", _MODELS): Rule(READ),
    ("POST", _MODELS + "/load"): Rule(LOAD),
    ("POST", _MODELS + "/unload"): Rule(LOAD),
    ("GET", "/admin/v1/tokens"): Rule(EVERYTHING),
    ("POST", "/admin/v1/tokens"): Rule(EVERYTHING, people=True),
    ("DELETE", "/admin/v1/tokens/{token}"): Rule(EVERYTHING, people=True),
    ("GET", "/admin/v1/fleet"): Rule(READ),
    ("POST", "/admin/v1/fleet/restart"): Rule(EVERYTHING, people=True),
    ("GET", "/admin/v1/audit/status"): Rule(AUDIT),
    ("GET", "/admin/v1/openapi.json"): Rule(READ),
}
"""(method, address) of the admin listener."""

_V2, _V2_VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
_V1, _V1_VERSION = "/v1/models/{model:name}", "/v1/models/{model:name}/versions/{version:name}"
_REPOSITORY = "/v2/repository/models/{model}"

DATA_RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/"): Rule(OPEN),
    ("GET", "/v2"): Rule(OPEN),
    ("GET", "/v2/"): Rule(OPEN),
    ("GET", "/v2/health/live"): Rule(OPEN),
    ("GET", "/v2/health/ready"): Rule(OPEN),
    ("GET", "/v2/models"): Rule(OPEN),
    ("GET", "/v2/models/stats"): Rule(OPEN),
    ("GET", "/v2/openapi.json"): Rule(OPEN),
    ("GET", _V2 + "/openapi.json"): Rule(OPEN),
    **{
        ("GET", base + end): Rule(OPEN)
        for base in (_V2, _V2_VERSION)
        for end in ("", "/ready", "/config", "/stats")
    },
    ("GET", "/v1/models"): Rule(OPEN),
    ("GET", _V1): Rule(OPEN),
    ("GET", _V1_VERSION): Rule(OPEN),
    ("POST", "/v2/repository/index"): Rule(OPEN),
    ("POST", _V2 + "/infer"): Rule(OPEN),
    ("POST", _V2_VERSION + "/infer"): Rule(OPEN),
    ("POST", _V1 + ":predict"): Rule(OPEN),
    ("POST", _V1_VERSION + ":predict"): Rule(OPEN),
    ("POST", _V2 + "/feedback"): Rule(FEEDBACK, open_on_loopback=True),
    ("POST", _REPOSITORY + "/load"): Rule(LOAD, open_on_loopback=True),
    ("POST", _REPOSITORY + "/unload"): Rule(LOAD, open_on_loopback=True),
}
"""(method, address) of the data listener. What changes nothing is open: inference may be anonymous."""


def allows(principal: Principal, scope: str, model: str | None) -> bool:
    """Whether a principal holds a scope, for this model where the scope is about one.

    Args:
        model: None for an address that names none: then the scope for any model will do.
    """
    held = principal.scopes
    if scope == OPEN or EVERYTHING in held or scope in held:
        return True
    if scope in PLAIN:
        return False
    for word in (scope, *HELD_BY.get(scope, ())):
        if f"{word}:*" in held or (model is not None and f"{word}:{model}" in held):
            return True
        if model is None and any(text.startswith(f"{word}:") for text in held):
            return True
    return False


def check(principal: Principal, rule: Rule, address: tuple[str, str], model: str | None) -> None:
    """Refuse what a rule does not give to a principal.

    Raises:
        Forbidden: names address, scope and what the principal has; or that a person decides this.
    """
    method, path = address
    if not allows(principal, rule.scope, model):
        needed = f"{rule.scope}:{model}" if rule.scope in OF_MODELS and model is not None else rule.scope
        has = ", ".join(sorted(principal.scopes)) or "none"
        msg = f"{method} {path} needs the scope {needed[:140]}; the {principal.name} has {has}"
        raise Forbidden(msg)
    if rule.people and principal.automaton:
        msg = f"{method} {path} is for a person to decide; {principal.name} is an automaton"
        raise Forbidden(msg)
