"""docs/admin-api.md: every address of the admin listener, from the table that it is built of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.api.admin import AdminApi
from gateway.api.admin_openapi import description, scope_text
from gateway.control.access import ADMIN_RULES, HELD_BY, OF_MODELS, PLAIN
from gateway.control.tokens import Tokens

_HEAD = """# Admin API

Made from the addresses of `gateway/api/admin.py` by `make docs`; the same as OpenAPI 3.1 at
`GET /admin/v1/openapi.json`.

The listener is on loopback by default. Who asks says so by a bearer token: the one in `<state_dir>/admin.token`, or one
that `tidegate token new` made. Bodies and answers are JSON; a field that is not known refuses the request. Errors are
`{"error": text, "code": snake_case}`, the codes those of [errors.md](errors.md).

* A change needs a `reason`, which stands in the log with who made it.
* A change of a route needs `If-Match` with the revision that it was decided on: 428 without, 412 when the route moved
  on, with the present `revision`, its `event`, and who `changed` it, when and why.
* `?dry_run=true` shows what a change would do.
* `Idempotency-Key`: the same request again, with the same key, changes nothing and answers the same.
* 202: the change is made, and the workers in `pending` do not run it yet.

Beyond loopback the listener needs `admin.tls` and a live token in `tokens.toml`, else the gateway does not start. The
files of `admin.tls` are read again when they change; no connection is dropped. With `admin.tls.client_ca` a client may
show a certificate instead of a token, where tokens.toml says whose it is:

```toml
[[certificate]]
subject = "ops.example"              # an alternative name, or the common name where it has none
principal = "ops"
scopes = ["read", "shift:*"]
```

One connection may send a head of 32 KiB, 100 fields and a body of 1 MiB, each within seconds; there are 256 at most.
"""


def admin_page() -> str:
    """The page."""
    api = AdminApi(None, None, None, Path(), Path(), Tokens(None))  # type: ignore[arg-type]
    addresses = api.addresses()
    document = description(addresses, ADMIN_RULES)
    out = [_HEAD, "## Scopes\n", "| scope | what it is for | comes with |", "|---|---|---|"]
    for word in (*PLAIN, *OF_MODELS):
        name = f"`{word}:MODEL`, `{word}:*`" if word in OF_MODELS else f"`{word}`"
        out.append(f"| {name} | {_MEANS[word]} | {', '.join(f'`{w}`' for w in HELD_BY.get(word, ()))} |")
    out += ["\n`admin` holds every other scope.\n", "## Addresses\n"]
    out += ["| address | scope | what it does |", "|---|---|---|"]
    for address in addresses:
        rule = ADMIN_RULES[address.method, address.path]
        scope = f"`{scope_text(rule)}`" if scope_text(rule) else "—"
        scope += "; on loopback none" if rule.open_on_loopback else ""
        scope += "; people only" if rule.people else ""
        out.append(f"| `{address.method} {address.path}` | {scope} | {address.says} |")
    out += ["\n## Bodies\n"]
    for address in addresses:
        if address.body is not None:
            fields = ", ".join(_field(*pair) for pair in _fields(document, address.body.__name__))
            out.append(f"* `{address.method} {address.path}`: {fields}")
    return "\n".join([*out, ""])


_MEANS = {
    "read": "looking at routes, models, processes and metrics",
    "audit": "where the log stands",
    "admin": "everything; alone makes and revokes tokens",
    "shift": "changes of a model's route",
    "rollback": "taking traffic off a canary, on evidence",
    "lease": "renewing the leases of canaries",
    "publish": "taking up versions from the repository",
    "load": "loading and unloading versions",
    "infer": "inference; at present open to all",
    "feedback": "labels, on a data listener beyond loopback",
    "force": "naming the variant that answers, beyond loopback",
}


def _fields(document: dict[str, Any], name: str) -> list[tuple[str, Any, bool]]:
    schema = document["components"]["schemas"][name]
    needed = schema.get("required", ())
    return [(field, kind, field in needed) for field, kind in schema["properties"].items()]


def _field(name: str, kind: dict[str, Any], needed: bool) -> str:
    words = kind.get("type") or kind.get("$ref", "").rpartition("/")[2]
    if not words:
        words = " or ".join(
            k.get("type") or k.get("$ref", "").rpartition("/")[2] for k in kind.get("anyOf", ())
        )
    return f"`{name}` ({words}{', needed' if needed and name != 'reason' else ''})"
