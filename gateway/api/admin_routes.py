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

from gateway.api.addresses import Address, get, post
from gateway.api.answers import json_answer
from gateway.api.bodies import (
    BoundsBody,
    PromoteBody,
    RearmBody,
    ReasonBody,
    RollbackBody,
    SetBody,
    ShiftBody,
    asked_of,
    if_match,
    is_dry_run,
    page_of,
    read_body,
)
from gateway.control.access import SHIFT, allows
from gateway.control.changes import (
    bounded,
    promoted,
    rearmed,
    resumed,
    rolled_back,
    rolled_back_canary,
    set_frozen,
    shifted,
    stopped,
    with_variants,
)
from gateway.control.engine import Engine, Outcome, changed_by
from gateway.control.gates import check_evidence, check_sidecar
from gateway.control.journal import Entry
from gateway.control.state import public_document, rollback_target
from gateway.errors import ChangeInvalid, Forbidden, StateConflict
from gateway.routing import Change, Route, iso_time

_ALL = "/admin/v1/routes"
_ONE = _ALL + "/{model}"
_MODEL = "/admin/v1/models/{model}"

Make = Callable[[Route, Change], Route]


class RouteHandlers:
    """Handlers of `/admin/v1/routes`.

    Args:
        state_of: the state word of a version, over all workers.
    """

    def __init__(self, engine: Engine, state_of: Callable[[str, str], str]) -> None:
        self._engine = engine
        self._state_of = state_of

    def addresses(self) -> list[Address]:
        """Their addresses."""
        return [
            get(_ALL, self.routes),
            get(_ONE, self.route),
            get(_ONE + "/history", self.history, "limit", "before"),
            get(_ONE + "/bounds", self.bounds),
            post(_ONE + "/bounds", self.set_bounds, BoundsBody, revised=True),
            Address(
                method="PUT",
                path=_ONE,
                handler=self.set_route,
                body=SetBody,
                revised=True,
                query=("dry_run",),
            ),
            post(_ONE + "/shift", self.shift, ShiftBody, revised=True),
            post(_ONE + "/promote", self.promote, PromoteBody, revised=True),
            post(_ONE + "/rollback", self.rollback, RollbackBody, revised=True),
            post(_ONE + "/rearm", self.rearm, RearmBody, revised=True),
            post(_ONE + "/lease", self.lease, ReasonBody, revised=True),
            post(_ONE + "/freeze", self.freeze, ReasonBody, revised=True),
            post(_ONE + "/thaw", self.thaw, ReasonBody, revised=True),
            post(_MODEL + "/stop", self.stop, ReasonBody, revised=True),
            post(_MODEL + "/resume", self.resume, ReasonBody, revised=True),
        ]

    async def routes(self, request: Request) -> Response:
        """Every route."""
        routes = self._engine.state.serving.routes
        return json_answer({"routes": [self._shown(routes[name]) for name in sorted(routes)]})

    async def route(self, request: Request) -> Response:
        """One route and its revision as ETag."""
        route = self._engine.route(request.path_params["model"])
        return json_answer(self._shown(route), etag=route.revision)

    async def history(self, request: Request) -> Response:
        """What happened to a route, newest first: its revisions, and what made none; a page at a time."""
        limit, before = page_of(request)
        model = self._engine.route(request.path_params["model"]).model
        entries = [_told(entry) for entry in await self._engine.history(model, before=before, limit=limit)]
        made = [entry["after"] for entry in entries if entry["is_revision"]]
        return json_answer({"model": model, "entries": entries, "revisions": made})

    async def bounds(self, request: Request) -> Response:
        """How far automata may move a route."""
        route = self._engine.route(request.path_params["model"])
        held = None if route.bounds is None else msgspec.to_builtins(route.bounds)
        return json_answer({"model": route.model, "bounds": held}, etag=route.revision)

    async def set_bounds(self, request: Request) -> Response:
        """Say how far automata may move a route; an empty body but for the reason takes the bounds away."""
        body = await read_body(request, BoundsBody)
        return await self._change(request, "bounds", body.reason, lambda r, c: bounded(r, body.bounds(), c))

    async def stop(self, request: Request) -> Response:
        """Answer nothing of this model until it is resumed; its versions stay loaded."""
        body = await read_body(request, ReasonBody)
        return await self._change(request, "stop", body.reason, stopped)

    async def resume(self, request: Request) -> Response:
        """Answer a stopped model's requests again."""
        body = await read_body(request, ReasonBody)
        return await self._change(request, "resume", body.reason, resumed)

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
        principal, model = request.state.principal, request.path_params["model"]
        # Who may take traffic back and no more does so on evidence, and from a canary.
        narrow = not allows(principal, SHIFT, model)
        if narrow and body.variant is None:
            msg = f"the {principal.name} may roll back a canary (variant), not a route"
            raise Forbidden(msg)
        if body.variant is not None and body.to_revision is not None:
            msg = "a rollback is of a canary (variant) or to a revision (to_revision), not both"
            raise ChangeInvalid(msg)
        if body.evidence is not None:
            policy = self._engine.policy_of(model)
            if narrow:
                check_sidecar(body.evidence, policy, self._engine.state.serving.gateway_id)
            check_evidence(body.evidence, policy, time.time_ns())
        elif narrow:
            msg = f"the {principal.name}'s rollback needs evidence: the event that it rests on, and its time (at_ns)"
            raise ChangeInvalid(msg)

        to = None if body.to_revision is None else await self._engine.revision_of(model, body.to_revision)

        def make(route: Route, change: Change) -> Route:
            if body.variant is not None:
                return rolled_back_canary(route, body.variant, change)
            return rolled_back(route, to or self._before(route), change)

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
            changed_by(request.state.principal.name, body.reason),
            expected_revision=if_match(request),
            dry_run=dry_run,
            asked=asked_of(request),
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
            changed_by(request.state.principal.name, reason, evidence),
            make,
            expected_revision=if_match(request),
            dry_run=is_dry_run(request),
            asked=asked_of(request),
        )
        return _outcome(outcome)

    def _before(self, route: Route) -> Route:
        """What a route is rolled back to that names no revision."""
        target = rollback_target(self._engine.state.ledger, route.model)
        if target is None:
            msg = f"route {route.model} has no earlier revision that differs from this one"
            raise StateConflict(msg)
        return target

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
    if outcome.replayed:
        content["replayed"] = True
    if outcome.applied is None:
        content["dry_run"] = True
    else:
        content["applied"] = msgspec.to_builtins(outcome.applied)
        status = 202 if outcome.applied.pending else 200
    etag = after.revision if after is not None and outcome.applied is not None else None
    return json_answer(content, status=status, etag=etag)


def _told(entry: Entry) -> dict[str, Any]:
    """An entry of a history as the API shows it: documents without salts."""
    after = msgspec.msgpack.decode(entry.after) if entry.after else None
    if isinstance(after, dict) and "variants" in after:
        after = public_document(msgspec.convert(after, Route))
    return {
        "kind": entry.kind,
        "at_ns": entry.at_ns,
        "by": entry.by,
        "reason": entry.reason,
        "event": entry.event,
        "revision": entry.revision,
        "is_revision": entry.is_revision,
        "via": entry.via,
        "key": entry.key,
        "count": entry.count,
        "after": after,
    }
