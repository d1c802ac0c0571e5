"""The admin listener described as OpenAPI 3.1, from its addresses, their bodies and the rules.

admin -> **admin_openapi**. The same table makes the application, this and docs/admin-api.md: what is described is what
is served.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway import __version__
from gateway.api.addresses import Address
from gateway.control.access import OF_MODELS, OPEN, Rule
from gateway.routing import NAME_PATTERN

JSON = "application/json"
_PARAMETER = re.compile(r"{(\w+)}")
_QUERY = {
    "dry_run": ("boolean", "show what would be, change nothing"),
    "limit": ("integer", "so many at least, if there are"),
    "before": ("integer", "only what was before this revision"),
}
_HEADERS = {
    "If-Match": (
        True,
        'the revision that the change was decided on, as in "12"; 428 without, 412 when it moved on',
    ),
    "Idempotency-Key": (
        False,
        "the same key and request again changes nothing and answers the same, for a day",
    ),
}
_PATHS = {"model": NAME_PATTERN, "token": "^[0-9a-f]{8}$"}


def description(addresses: Sequence[Address], rules: Mapping[tuple[str, str], Rule]) -> dict[str, Any]:
    """The document."""
    bodies = list(dict.fromkeys(a.body for a in addresses if a.body is not None))
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    schemas["Error"] = {
        "type": "object",
        "required": ["error", "code"],
        "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
    }
    paths: dict[str, dict[str, Any]] = {}
    for address in addresses:
        rule = rules[address.method, address.path]
        paths.setdefault(address.path, {})[address.method.lower()] = _operation(address, rule)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tidegate, admin listener", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def scope_text(rule: Rule) -> str:
    """What a rule needs, for people: `shift:MODEL`, `read`, or nothing."""
    if rule.scope == OPEN:
        return ""
    return f"{rule.scope}:MODEL" if rule.scope in OF_MODELS else rule.scope


def _operation(address: Address, rule: Rule) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": f"{address.method.lower()} {address.path}",
        "summary": address.says,
        "parameters": _parameters(address),
        "responses": {
            "2XX": {
                "description": "Done; 202: not all workers run it yet",
                "content": {JSON: {"schema": {}}},
            },
            "default": {
                "description": "Why not",
                "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if rule.scope != OPEN:
        found["security"] = [{"token": [scope_text(rule)]}]
        if rule.open_on_loopback:
            found["security"].append({})
        if rule.people:
            found["x-tidegate-people"] = True
    if address.body is not None:
        schema = {"$ref": f"#/components/schemas/{address.body.__name__}"}
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return found


def _parameters(address: Address) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": _PATHS[name]}}
        for name in _PARAMETER.findall(address.path)
    ]
    for name in address.query:
        kind, says = _QUERY[name]
        found.append({"name": name, "in": "query", "description": says, "schema": {"type": kind}})
    for name, (needed, says) in _HEADERS.items() if address.revised else ():
        found.append(
            {
                "name": name,
                "in": "header",
                "required": needed,
                "description": says,
                "schema": {"type": "string"},
            }
        )
    return found
