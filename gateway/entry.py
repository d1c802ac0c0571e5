"""One model as a worker serves it: its versions that are ready here, and its compiled route.

serving (what the snapshot asks for) -> **entry** -> core, doors. Swapped in whole: a request sees one route or
the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gateway.breaker import Breaker
from gateway.errors import InvalidRequest, ModelNotReady, ModelStopped, UnknownModel
from gateway.retrying import Retries
from gateway.routing import (
    Assignment,
    Change,
    Route,
    RouteTable,
    compile_route,
    forced,
    lease_end_ns,
    pinned,
)
from gateway.version import Version


class Entry:
    """One model: its versions here and its compiled route."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.versions: dict[str, Version] = {}
        self.states: dict[str, tuple[str, str | None]] = {}
        """Of every desired version: state word and reason."""
        self.table: RouteTable | None = None
        self.lease_end_ns: int | None = None
        """When the table is not right any more: a canary's lease ends (wall clock)."""
        self.revision = 0
        self.generation = 0
        self.codec: Any = None
        """The primary's, None while it cannot answer."""
        self.single: tuple[Assignment, Version] | None = None
        """Where one version, ready here, has all the traffic: it, and how it is drawn."""
        self.turn_away_until_ns = 0
        """Until then admission refuses what would wait like the request it refused last."""
        self.stopped: Change | None = None
        """By whom and why nothing of it is answered."""
        self.breakers: dict[str, Breaker] = {}
        """By variant, of the canaries of this revision."""
        self.key = b""
        """The host's secret for routing keys."""
        self.on_open: Callable[[Entry, str, Breaker], None] = lambda entry, variant, breaker: None
        """Called once a breaker has taken a variant's traffic away."""
        self._pinned: dict[str, Assignment] = {}
        self._forced: dict[str, Assignment] = {}
        self._compiled: tuple[Route | None, int] = (None, 0)
        self._canaries: list[Version] = []
        self._primary: Version | None = None

    def codec_of(self, version: str | None) -> Any:
        """The codec of a version, or of the primary's.

        Raises:
            UnknownModel, ModelNotReady: no such version, or none is ready.
            ModelStopped: an operator stopped the model.
        """
        if version is not None:
            return self.version(version).codec
        if self.codec is None:
            self._refuse_stopped()
            msg = f"model '{self.model}' has no version that is ready: {self.why_not()}"
            raise ModelNotReady(msg)
        return self.codec

    def version(self, version: str) -> Version:
        """A version that is ready here.

        Raises:
            UnknownModel: not in the repository's loaded set.
            ModelNotReady: known, loading or failed; says which.
            ModelStopped: an operator stopped the model.
        """
        if self.stopped is not None:
            self._refuse_stopped()
        found = self.versions.get(version)
        if found is not None:
            return found
        if version not in self.states:
            raise UnknownModel(self.model, version)
        state, reason = self.states[version]
        why = f" ({reason})" if reason else ""
        msg = f"model '{self.model}' version {version} is {state}{why}"
        raise ModelNotReady(msg)

    def pinned(self, version: str) -> Assignment:
        """The one assignment object of requests that name this version."""
        made = self._pinned.get(version)
        if made is None:
            made = pinned(self.model, version, self.revision, self.generation)
            self._pinned[version] = made
        return made

    def forced(self, variant: str) -> Assignment:
        """The one assignment object of requests that name this variant, whatever its weight and role.

        Raises:
            InvalidRequest: the route has none of the name; says which it has.
            ModelNotReady: the model has no route that can be served.
        """
        made = self._forced.get(variant)
        if made is None:
            table = self.draw()
            named = next((v for v in table.route.variants if v.name == variant), None)
            if named is None:
                names = ", ".join(v.name for v in table.route.variants)
                msg = f"x-tidegate-variant is {variant[:64]!r}; model '{self.model}' has variants {names}"
                raise InvalidRequest(msg)
            made = self._forced[variant] = forced(table.route, named, self.generation)
        return made

    def draw(self) -> RouteTable:
        """What requests are drawn by.

        Raises:
            ModelNotReady: the model has no route that can be served.
            ModelStopped: an operator stopped the model.
        """
        if self.table is None:
            self._refuse_stopped()
            msg = f"model '{self.model}' has no version that is ready: {self.why_not()}"
            raise ModelNotReady(msg)
        return self.table

    def _refuse_stopped(self) -> None:
        if self.stopped is not None:
            by, why = self.stopped.by, self.stopped.reason
            msg = (
                f"model '{self.model}' was stopped by {by} ({why[:200]}); it answers again once it is resumed"
            )
            raise ModelStopped(msg)

    def breaker_version(self, variant: str) -> str:
        """The version that a variant of the route as compiled names."""
        route = self._compiled[0]
        return "" if route is None else route.variant(variant).version

    def why_not(self) -> str:
        """Why nothing can answer, in words."""
        if not self.states:
            return "no version is loaded"
        return "; ".join(
            f"version {version} is {state}"
            + (f" ({reason})" if reason else " and waits for its route" if state == "ready" else "")
            for version, (state, reason) in sorted(self.states.items())
        )

    def compile(self, route: Route | None, generation: int, now_ns: int) -> None:
        """Swap in the route as it looks now, with what is ready here.

        Args:
            now_ns: the wall clock's, by which leases end.
        """
        self._pinned, self._forced = {}, {}
        self.generation = generation
        before, self.table = self.table, None
        self.lease_end_ns = None
        self.codec = self.single = None
        self.stopped = None if route is None else route.stopped
        self._compiled = (route, generation)
        for version in self._canaries:
            version.unwatched()
        self._canaries = []
        if route is None:
            return
        if route.revision != self.revision:
            self.breakers = {}
        self.revision = route.revision
        primary = self.versions.get(route.primary.version)
        if primary is not None and self.stopped is None:
            self.codec = primary.codec
            self._watch(route, primary)
            broken = frozenset(name for name, breaker in self.breakers.items() if breaker.is_open)
            self.table = table = compile_route(
                route, generation, self.versions, now_ns, broken=broken, key=self.key, before=before
            )
            only = table.only
            if only is not None and only.version in self.versions:
                self.single = (only, self.versions[only.version])
            self.lease_end_ns = lease_end_ns(route, now_ns)
        for version in self.versions.values():
            broken_at = route.revision if version.is_broken else 0
            version.counting.standing(stopped=self.stopped is not None, broken_at=broken_at)

    def _watch(self, route: Route, primary: Version) -> None:
        """What canaries fail goes to the primary; the breakers of a revision go on."""
        now_ns = time.perf_counter_ns()
        if primary is not self._primary:
            # It was loaded again: what its totals were says nothing about what they are.
            self._primary = primary
            self.breakers = {name: breaker for name, breaker in self.breakers.items() if breaker.is_open}
        for variant in route.variants:
            canary = self.versions.get(variant.version)
            if variant.role != "canary" or not variant.weight_bp or canary is None or canary is primary:
                continue
            if canary.retries is None:
                canary.watched(Retries((primary, route.primary.name), canary, route.revision, self._opened))
                self._canaries.append(canary)
            known = self.breakers.get(variant.name)
            self.breakers[variant.name] = canary.retries.watch(variant.name, known, now_ns)

    def _opened(self, variant: str, breaker: Breaker) -> None:
        """A breaker opened: from the next request on the primary has the variant's traffic."""
        if self.breakers.get(variant) is not breaker:
            # Of an earlier revision.
            return
        route, generation = self._compiled
        self.compile(route, generation, time.time_ns())
        self.on_open(self, variant, breaker)
