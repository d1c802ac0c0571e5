"""Routes over the admin API: shown, and changed by compare-and-set.

admin (who may) -> **admin_routes** -> control.changes makes the next document -> control.engine checks and logs it.
The sidecar's rights are narrow: it renews leases and takes traffic off a canary, on evidence that is young.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.answers import json_answer
from gateway.api.bodies import (
    PromoteBody,
    RearmBody,
    ReasonBody,
    RollbackBody,
    SetBody,
    ShiftBody,
    if_match,
    is_dry_run,
    read_body,
)
from gateway.control.changes import (
    promoted,
    rearmed,
    rolled_back,
    rolled_back_canary,
    set_frozen,
    shifted,
    with_variants,
)
from gateway.control.engine import Engine, Outcome, changed_by
from gateway.control.gates import check_evidence, check_sidecar
from gateway.control.state import public_document, rollback_target
from gateway.control.tokens import SIDECAR
from gateway.errors import ChangeInvalid, Forbidden, StateConflict
from gateway.routing import Change, Route, iso_time

Make = Callable[[Route, Change], Route]


class RouteHandlers:
    """Handlers of `/admin/v1/routes`.

    Args:
        state_of: the state word of a version, over all workers.
    """

    def __init__(self, engine: Engine, state_of: Callable[[str, str], str]) -> None:
        self._engine = engine
        self._state_of = state_of

    async def routes(self, request: Request) -> Response:
        """Every route."""
        routes = self._engine.state.serving.routes
        return json_answer({"routes": [self._shown(routes[name]) for name in sorted(routes)]})

    async def route(self, request: Request) -> Response:
        """One route and its revision as ETag."""
        route = self._engine.route(request.path_params["model"])
        return json_answer(self._shown(route), etag=route.revision)

    async def history(self, request: Request) -> Response:
        """The revisions kept for rollback, newest first."""
        route = self._engine.route(request.path_params["model"])
        kept = self._engine.state.ledger.history.get(route.model, ())
        return json_answer({"model": route.model, "revisions": [public_document(r) for r in reversed(kept)]})

    async def set_route(self, request: Request) -> Response:
        """Replace a route's variants."""
        body = await read_body(request, SetBody)
        variants = tuple(v.variant() for v in body.variants)
        return await self._change(request, "route", body.reason, lambda r, c: with_variants(r, variants, c))

    async def shift(self, request: Request) -> Response:
        """Set canaries' weights; the primary has the rest."""
        body = await read_body(request, ShiftBody)
        return await self._change(request, "shift", body.reason, lambda r, c: shifted(r, body.weights_bp, c))

    async def promote(self, request: Request) -> Response:
        """Make a canary's version the primary's."""
        body = await read_body(request, PromoteBody)
        return await self._change(request, "promote", body.reason, lambda r, c: promoted(r, body.variant, c))

    async def rollback(self, request: Request) -> Response:
        """Take a canary's traffic away and latch its version, or bring back an older revision's content."""
        body = await read_body(request, RollbackBody)
        if request.state.principal == SIDECAR and body.variant is None:
            msg = "the sidecar may roll back a canary (variant), not a route"
            raise Forbidden(msg)
        if body.variant is not None and body.to_revision is not None:
            msg = "a rollback is of a canary (variant) or to a revision (to_revision), not both"
            raise ChangeInvalid(msg)
        if body.evidence is not None:
            policy = self._engine.policy_of(request.path_params["model"])
            if request.state.principal == SIDECAR:
                check_sidecar(body.evidence, policy, self._engine.state.serving.gateway_id)
            check_evidence(body.evidence, policy, time.time_ns())
        elif request.state.principal == SIDECAR:
            msg = "the sidecar's rollback needs evidence: the event that it rests on, and its time (at_ns)"
            raise ChangeInvalid(msg)

        def make(route: Route, change: Change) -> Route:
            if body.variant is not None:
                return rolled_back_canary(route, body.variant, change)
            return rolled_back(route, self._revision(route, body.to_revision), change)

        evidence = body.evidence.event if body.evidence is not None else None
        return await self._change(request, "rollback", body.reason, make, evidence)

    async def rearm(self, request: Request) -> Response:
        """End a version's latch."""
        body = await read_body(request, RearmBody)
        return await self._change(request, "rearm", body.reason, lambda r, c: rearmed(r, body.version, c))

    async def lease(self, request: Request) -> Response:
        """Extend the leases of the canaries; the revision stays."""
        body = await read_body(request, ReasonBody)
        dry_run = is_dry_run(request)
        outcome = await self._engine.renew_leases(
            request.path_params["model"],
            changed_by(request.state.principal, body.reason),
            expected_revision=if_match(request),
            dry_run=dry_run,
        )
        assert outcome.route is not None  # noqa: S101
        route = outcome.route
        content: dict[str, Any] = {
            "revision": route.revision,
            "generation": outcome.generation,
            "lease_until": {v.name: iso_time(v.lease_until_ns) for v in route.variants if v.lease_until_ns},
        }
        if dry_run:
            return json_answer({**content, "dry_run": True})
        return json_answer(content, etag=route.revision)

    async def freeze(self, request: Request) -> Response:
        """Hold a route."""
        body = await read_body(request, ReasonBody)
        return await self._change(request, "freeze", body.reason, lambda r, c: set_frozen(r, True, c))

    async def thaw(self, request: Request) -> Response:
        """End a hold."""
        body = await read_body(request, ReasonBody)
        return await self._change(request, "thaw", body.reason, lambda r, c: set_frozen(r, False, c))

    async def _change(
        self, request: Request, kind: str, reason: str, make: Make, evidence: str | None = None
    ) -> Response:
        outcome = await self._engine.change_route(
            request.path_params["model"],
            kind,
            changed_by(request.state.principal, reason, evidence),
            make,
            expected_revision=if_match(request),
            dry_run=is_dry_run(request),
        )
        return _outcome(outcome)

    def _revision(self, route: Route, number: int | None) -> Route:
        kept = self._engine.state.ledger.history.get(route.model, ())
        if number is None:
            target = rollback_target(self._engine.state.ledger, route.model)
            if target is None:
                msg = f"route {route.model} has no earlier revision that differs from this one"
                raise StateConflict(msg)
            return target
        for revision in kept:
            if revision.revision == number:
                return revision
        have = ", ".join(str(r.revision) for r in kept)
        msg = f"route {route.model} keeps no revision {number}; it keeps {have}"
        raise ChangeInvalid(msg)

    def _shown(self, route: Route) -> dict[str, Any]:
        content = public_document(route)
        now_ns = time.time_ns()
        for variant in content["variants"]:  # type: ignore[attr-defined]
            variant["state"] = self._state_of(route.model, variant["version"])
            if "lease_until_ns" in variant:
                variant["lease_over"] = variant["lease_until_ns"] <= now_ns
        return content


def _outcome(outcome: Outcome) -> Response:
    """What a change did: revision, weights before and after, event, and who runs it; 202 while some do not."""
    after, before = outcome.route, outcome.before
    content: dict[str, Any] = {"generation": outcome.generation}
    status = 200
    if after is not None and before is not None:
        content["revision"] = after.revision
        content["before_bp"] = before.weights_bp
        content["after_bp"] = after.weights_bp
        content["event"] = after.changed.event
    if not outcome.logged:
        content["logged"] = False
    if outcome.applied is None:
        content["dry_run"] = True
    else:
        content["applied"] = msgspec.to_builtins(outcome.applied)
        status = 202 if outcome.applied.pending else 200
    etag = after.revision if after is not None and outcome.applied is not None else None
    return json_answer(content, status=status, etag=etag)
