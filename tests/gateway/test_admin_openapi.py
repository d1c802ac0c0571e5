"""The admin listener's description says what is served, and how."""

from __future__ import annotations

from typing import Any

from gateway.control.access import ADMIN_RULES
from tests.gateway.test_admin import Admin
from tests.gateway.test_admin import admin as admin  # a fixture
from tests.gateway.test_admin import plane as plane  # a fixture


def document(admin: Admin) -> dict[str, Any]:
    """As a client gets it."""
    reply = admin.send("GET", "/admin/v1/openapi.json")
    assert reply.status_code == 200
    found: dict[str, Any] = reply.json()
    return found


def test_every_address_is_described(admin: Admin) -> None:
    """No more and no fewer than there are, each with what it does."""
    paths = document(admin)["paths"]
    told = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert told == set(ADMIN_RULES)
    assert [path for path, methods in paths.items() for op in methods.values() if not op["summary"]] == []


def test_changes_say_what_they_need(admin: Admin) -> None:
    """Body, If-Match, dry run, and the scope; what it refers to is there."""
    found = document(admin)
    shift = found["paths"]["/admin/v1/routes/{model}/shift"]["post"]
    needed = {(p["in"], p["name"]) for p in shift["parameters"]}
    assert needed == {
        ("path", "model"),
        ("query", "dry_run"),
        ("header", "If-Match"),
        ("header", "Idempotency-Key"),
    }
    assert shift["security"] == [{"token": ["shift:MODEL"]}]
    schema = found["components"]["schemas"]["ShiftBody"]
    assert (schema["required"], schema["additionalProperties"]) == (["weights_bp"], False)
    names = {r.rpartition("/")[2] for r in references(found)}
    assert names <= set(found["components"]["schemas"])


def references(node: Any) -> list[str]:
    """Every $ref in a document."""
    if isinstance(node, dict):
        return [v for k, v in node.items() if k == "$ref"] + [r for v in node.values() for r in references(v)]
    return [r for v in node for r in references(v)] if isinstance(node, list) else []
