"""Tokens over the admin API: listed, made, revoked; each change logged.

admin (who may) -> **admin_tokens** -> control.token_store writes the file, the fleet's word tells every worker. A token
is made after the log has it; one is revoked even where the log takes nothing, and owed to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.addresses import Address, get, post
from gateway.api.answers import json_answer
from gateway.api.bodies import ReasonBody, TokenBody, asked_of, is_dry_run, read_body
from gateway.control.engine import Engine, changed_by
from gateway.control.idempotency import made_before
from gateway.control.token_store import Asked, TokenStore
from gateway.control.token_table import Token
from gateway.errors import AuditUnavailable, StateConflict

_ALL = "/admin/v1/tokens"


class TokenHandlers:
    """Handlers of `/admin/v1/tokens`.

    Args:
        changed: takes up in this process what is in the file now, and tells the others.
        problem: why the file is not taken up, if it is not.
    """

    def __init__(
        self,
        engine: Engine,
        store: TokenStore,
        changed: Callable[[], None],
        problem: Callable[[], str | None],
    ) -> None:
        self._engine = engine
        self._store = store
        self._changed = changed
        self._problem = problem
        self._turn = asyncio.Lock()

    def addresses(self) -> list[Address]:
        """Their addresses."""
        return [
            get(_ALL, self.tokens),
            post(_ALL, self.new, TokenBody, dry=True),
            Address(
                method="DELETE",
                path=_ALL + "/{token}",
                handler=self.revoke,
                body=ReasonBody,
                query=("dry_run",),
            ),
        ]

    async def tokens(self, request: Request) -> Response:
        """Every token of tokens.toml: id, principal, scopes, when made and when over. No secrets."""
        content: dict[str, Any] = {"tokens": [_shown(token) for token in self._store.listed()]}
        problem = self._problem()
        if problem is not None:
            content["problem"] = problem
        return json_answer(content)

    async def new(self, request: Request) -> Response:
        """Make a token for a principal, which has two at most. The secret is in this answer and nowhere else."""
        body = await read_body(request, TokenBody)
        asked = Asked(
            principal=body.principal,
            scopes=body.scopes,
            expires_ns=body.expires_ns,
            automaton=body.automaton,
        )
        change = changed_by(request.state.principal.name, body.reason)
        async with self._turn:
            token, secret = self._store.drawn(asked)
            shown = _shown(token)
            if is_dry_run(request):
                return json_answer({**shown, "id": None, "dry_run": True})
            asked_how = asked_of(request)
            if made_before(self._engine.state.ledger.done, change.by, asked_how) is not None:
                msg = (
                    f"the token of {asked.principal} was made when it was asked for first, and its secret was in that"
                    " answer alone: revoke it, the newest in `tidegate token list`, and ask for another"
                )
                raise StateConflict(msg)
            await self._engine.note("token", change, {"made": shown}, asked_how, urgent=False)
            self._store.add(token)
            self._changed()
        return json_answer({**shown, "token": secret}, 201)

    async def revoke(self, request: Request) -> Response:
        """Revoke a token: it opens nothing any more, in any process, within a second."""
        body = await read_body(request, ReasonBody)
        change = changed_by(request.state.principal.name, body.reason)
        async with self._turn:
            token = self._store.get(request.path_params["token"])
            shown = _shown(token)
            if is_dry_run(request):
                return json_answer({**shown, "dry_run": True})
            revoked = {"revoked": shown}
            try:
                logged = await self._engine.note("token", change, revoked, asked_of(request), urgent=True)
            except AuditUnavailable:
                # Nor could it be owed. The door is shut all the same.
                logged = False
            self._store.revoke(token.id)
            self._changed()
        return json_answer(shown if logged else {**shown, "logged": False})


def _shown(token: Token) -> dict[str, Any]:
    content: dict[str, Any] = msgspec.to_builtins(token)
    del content["sha256"]
    return content
