"""Who may what: listener x address x method x role x state of the token, every cell.

What is expected stands here as text, written by hand from SECURITY.md and docs/decisions/0024, not made from the rules
that it checks. Handlers are stand-ins: a cell is about who gets as far as one.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.addresses import ruled
from gateway.api.admin import AdminApi
from gateway.api.crowd import Limits
from gateway.api.guarding import Guard
from gateway.api.infer import DataApi
from gateway.api.outgoing import problem_response
from gateway.control.access import ADMIN_RULES, DATA_RULES
from gateway.control.token_store import TokenStore
from gateway.control.token_table import CLOCK_NS, Token
from gateway.control.tokens import CLIENTS, PRINCIPALS, Tokens, ensure_tokens
from gateway.errors import GatewayError

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

ADMIN = """
GET     /healthz                                anyone
GET     /metrics                                read        open-on-loopback
GET     /admin/v1/routes                        read
GET     /admin/v1/routes/{model}                read
GET     /admin/v1/routes/{model}/history        read
PUT     /admin/v1/routes/{model}                shift
POST    /admin/v1/routes/{model}/shift          shift
POST    /admin/v1/routes/{model}/promote        shift
POST    /admin/v1/routes/{model}/rollback       rollback
POST    /admin/v1/routes/{model}/rearm          shift       people
POST    /admin/v1/routes/{model}/lease          lease
POST    /admin/v1/routes/{model}/freeze         shift
POST    /admin/v1/routes/{model}/thaw           shift       people
GET     /admin/v1/routes/{model}/bounds         read
POST    /admin/v1/routes/{model}/bounds         shift       people
POST    /admin/v1/models/{model}/stop           shift
POST    /admin/v1/models/{model}/resume         shift       people
GET     /admin/v1/models                        read
POST    /admin/v1/models/refresh                any-publish
GET     /admin/v1/models/{model}                read
POST    /admin/v1/models/{model}/load           load
POST    /admin/v1/models/{model}/unload         load
GET     /admin/v1/tokens                        admin
POST    /admin/v1/tokens                        admin       people
DELETE  /admin/v1/tokens/{token}                admin       people
GET     /admin/v1/fleet                         read
POST    /admin/v1/fleet/restart                 admin       people
GET     /admin/v1/audit/status                  audit
GET     /admin/v1/openapi.json                  read
"""

DATA = """
GET     /                                                       anyone
GET     /v2                                                     anyone
GET     /v2/                                                    anyone
GET     /v2/health/live                                         anyone
GET     /v2/health/ready                                        anyone
GET     /v2/models                                              anyone
GET     /v2/models/stats                                        anyone
GET     /v2/models/{model}                                      anyone
GET     /v2/models/{model}/ready                                anyone
GET     /v2/models/{model}/config                               anyone
GET     /v2/models/{model}/stats                                anyone
GET     /v2/models/{model}/versions/{version}                   anyone
GET     /v2/models/{model}/versions/{version}/ready             anyone
GET     /v2/models/{model}/versions/{version}/config            anyone
GET     /v2/models/{model}/versions/{version}/stats             anyone
GET     /v2/openapi.json                                        anyone
GET     /v2/models/{model}/openapi.json                         anyone
GET     /v1/models                                              anyone
GET     /v1/models/{model:name}                                 anyone
GET     /v1/models/{model:name}/versions/{version:name}         anyone
POST    /v2/repository/index                                    anyone
POST    /v2/models/{model}/infer                                anyone
POST    /v2/models/{model}/versions/{version}/infer             anyone
POST    /v1/models/{model:name}:predict                         anyone
POST    /v1/models/{model:name}/versions/{version:name}:predict anyone
POST    /v2/models/{model}/feedback                             feedback    open-on-loopback
POST    /v2/repository/models/{model}/load                      load        open-on-loopback
POST    /v2/repository/models/{model}/unload                    load        open-on-loopback
"""

READ_BY_NAME = {"/admin/v1/models/refresh": "/admin/v1/models/{model}"}
"""Read, it is what another row is about: a model of that name."""

HOLDERS = {
    "read": {"read", "admin"},
    "audit": {"audit", "admin"},
    "admin": {"admin"},
    "shift": {"shift:m", "shift:*", "admin"},
    "rollback": {"rollback", "rollback:m", "rollback:*", "shift:m", "shift:*", "admin"},
    "lease": {"lease", "lease:m", "lease:*", "shift:m", "shift:*", "admin"},
    "load": {"load", "load:m", "load:*", "publish:m", "publish:*", "admin"},
    "any-publish": {"publish:m", "publish:n", "publish:*", "admin"},
    "feedback": {"feedback:m", "feedback:*", "admin"},
}
"""Of what an address needs, with the model m: the scopes that give it."""

SCOPES = [
    "read", "audit", "admin", "rollback", "lease", "load",
    *(f"{word}:{model}" for word in (
        "shift", "rollback", "lease", "publish", "load", "infer", "feedback", "force",
    ) for model in ("m", "n", "*")),
]  # fmt: skip

OWN = {
    "admin": ("admin", {"admin"}, False),
    "sidecar": ("admin", {"read", "rollback", "lease"}, True),
    "worker": ("admin", {"load"}, False),
    "feedback": ("data", {"feedback:*"}, False),
    "publish": ("data", {"publish:*"}, False),
}
"""The gateway's own secrets: the listener that takes each, its scopes, and whether it is an automaton's."""

STATES = ("valid", "second", "expired", "revoked", "unknown", "cut", "basic")
LIVE = {"valid", "second"}


class Row(NamedTuple):
    """What is expected of an address."""

    method: str
    path: str
    needs: str
    marks: frozenset[str]


def rows(text: str) -> list[Row]:
    """A table above."""
    parts = [line.split() for line in text.strip().splitlines()]
    return [Row(method, path, needs, frozenset(marks)) for method, path, needs, *marks in parts]


TABLES = {"admin": rows(ADMIN), "data": rows(DATA)}
LISTENERS = [(name, place) for name in TABLES for place in ("loopback", "public")]


class Bench:
    """Both listeners with stand-ins for handlers, and headers of every role in every state."""

    def __init__(self, state_dir: Path) -> None:
        state_dir.mkdir()
        ensure_tokens(state_dir)
        self.now_ns = 1_785_312_000_000_000_000
        self.headers: dict[tuple[str, bool, str], str | None] = {}
        tokens: dict[str, list[Token]] = {"kept": [], "revoked": []}
        for scope, automaton in itertools.product(SCOPES, (False, True)):
            for state in ("valid", "second", "expired", "revoked"):
                number = len(self.headers)
                secret = f"tg_{number:08x}_{number * 7919:048x}"
                token = Token(
                    id=f"{number:08x}",
                    principal=f"p{number}",
                    scopes=(scope,),
                    automaton=automaton,
                    sha256=hashlib.sha256(secret.encode()).hexdigest(),
                    expires_ns=self.now_ns + 1 if state == "expired" else None,
                )
                tokens["revoked" if state == "revoked" else "kept"].append(token)
                self.headers[scope, automaton, state] = f"Bearer {secret}"
            self.headers[scope, automaton, "cut"] = f"Bearer {secret[:-1]}"
            self.headers[scope, automaton, "basic"] = f"Basic {secret}"
            self.headers[scope, automaton, "unknown"] = f"Bearer {secret[:-6]}ffffff"
        store = TokenStore(state_dir, lambda: self.now_ns)
        store._write([*tokens["kept"], *tokens["revoked"]], ())
        clock = lambda: self.now_ns  # noqa: E731
        self.tokens = {
            "admin": Tokens(state_dir, PRINCIPALS, clock),
            "data": Tokens(state_dir, CLIENTS, clock),
        }
        # All were looked up while they were good: what is remembered must not keep them alive.
        for known, header in itertools.product(self.tokens.values(), self.headers.values()):
            known.of((header or "").encode())
        store._write(tokens["kept"], ())
        self.now_ns += CLOCK_NS + 1
        for name, (_, _, automaton) in OWN.items():
            self.headers[f"own {name}", automaton, "valid"] = (
                f"Bearer {(state_dir / f'{name}.token').read_text().strip()}"
            )
        self.headers["none", False, "valid"] = None
        for known in self.tokens.values():
            assert known.reload()
        self.apps = {at: self._app(*at) for at in LISTENERS}

    def _app(self, listener: str, place: str) -> Starlette:
        tokens, on_loopback = self.tokens[listener], place == "loopback"
        if listener == "admin":
            api = AdminApi(None, None, None, Path(), Path(), Tokens(None))  # type: ignore[arg-type]
            known, rules = [(a.method, a.path) for a in api.addresses()], ADMIN_RULES
        else:
            core = SimpleNamespace(models=None, appender=None)
            found = DataApi(core, Limits(), "spool")._routes()  # type: ignore[arg-type]
            known, rules = [(m, r.path) for r in found for m in (r.methods or ()) if m != "HEAD"], DATA_RULES
        guard = Guard(tokens, on_loopback=on_loopback, every=listener == "admin")
        routes = ruled([Route(path, _stand_in, methods=[method]) for method, path in known], rules, guard)
        app = Starlette(routes=routes, exception_handlers={GatewayError: _refused})
        app.router.redirect_slashes = False
        return app

    async def ask(self, at: tuple[str, str], method: str, path: str, header: str | None) -> int:
        """The status of one request, of its own site and with a body's usual type."""
        fields = {"host": "127.0.0.1:1" if at[1] == "loopback" else "gateway.example"}
        fields |= {"content-type": "application/json"} | ({} if header is None else {"authorization": header})
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in fields.items()], "root_path": "",
            "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 1),
        }  # fmt: skip
        seen: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen.append(message["status"])

        await self.apps[at](scope, receive, send)
        return seen[0]


async def _stand_in(request: Request) -> Response:
    return Response(status_code=204)


async def _refused(request: Request, exc: Exception) -> Response:
    return problem_response(exc)


def asked(path: str) -> str:
    """The path with a model, version and token in it."""
    for name, value in (
        ("{model:name}", "m"), ("{version:name}", "1"), ("{model}", "m"), ("{version}", "1"), ("{token}", "ab"),
    ):  # fmt: skip
        path = path.replace(name, value)
    return path


def expected(at: tuple[str, str], row: Row, role: str, automaton: bool, state: str) -> int:
    """What the tables above say of a cell whose method is the row's."""
    if row.needs == "anyone":
        return 204
    if "open-on-loopback" in row.marks and at[1] == "loopback":
        return 204
    scopes, live = {role}, state in LIVE
    if role.startswith("own "):
        listener, scopes, _ = OWN[role[4:]]
        live = listener == at[0]
    if role == "none" or not live:
        return 401
    if not scopes & HOLDERS[row.needs] or (automaton and "people" in row.marks):
        return 403
    return 204


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Tokens of every scope, for people and for automata, in every state."""
    return Bench(tmp_path_factory.mktemp("matrix") / "state")


def test_the_tables_name_every_address() -> None:
    """An address that is served and not told here, or the other way round, is a hole in the matrix."""
    assert {(row.method, row.path) for row in TABLES["admin"]} == set(ADMIN_RULES)
    assert {(row.method, row.path) for row in TABLES["data"]} == set(DATA_RULES)


async def cells(bench: Bench, at: tuple[str, str], *, every: bool) -> tuple[int, list[object]]:
    """How many cells were asked, and those that are not as expected."""
    table = {(row.method, row.path): row for row in TABLES[at[0]]}
    paths = list(dict.fromkeys(row.path for row in TABLES[at[0]]))
    count, wrong = 0, []
    for (role, automaton, state), header in bench.headers.items():
        for path, method in itertools.product(paths, METHODS):
            reads = method in {"GET", "HEAD"}
            row = table.get(("GET", READ_BY_NAME.get(path, path)) if reads else (method, path))
            if row is None and not every and role not in {"none", "own admin", "admin"}:
                continue
            wanted = 405 if row is None else expected(at, row, role, automaton, state)
            found = await bench.ask(at, method, asked(path), header)
            count += 1
            if found != wanted:
                wrong.append((method, path, role, automaton, state, found, wanted))
    return count, wrong


@pytest.mark.parametrize("at", LISTENERS, ids=" ".join)
def test_cells(bench: Bench, at: tuple[str, str]) -> None:
    """Whoever may gets as far as the handler, nobody else does. Methods that an address lacks: with three roles."""
    count, wrong = asyncio.run(cells(bench, at, every=False))
    assert wrong == []
    assert count > 8_000


@pytest.mark.prove
@pytest.mark.parametrize("at", LISTENERS, ids=" ".join)
def test_every_cell(bench: Bench, at: tuple[str, str]) -> None:
    """The same with every method for every role and state."""
    count, wrong = asyncio.run(cells(bench, at, every=True))
    print(f"{' '.join(at)}: {count} cells")
    assert wrong == []
    assert count == len({row.path for row in TABLES[at[0]]}) * len(METHODS) * len(bench.headers)
