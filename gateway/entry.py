"""One model as a worker serves it: its versions that are ready here, and its compiled route.

serving (what the snapshot asks for) -> **entry** -> core, doors. Swapped in whole: a request sees one route or
the next.
"""

from __future__ import annotations

from typing import Any

from gateway.errors import ModelNotReady, UnknownModel
from gateway.routing import Assignment, RouteTable, compile_route, lease_end_ns, pinned
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
        self._pinned: dict[str, Assignment] = {}

    def codec_of(self, version: str | None) -> Any:
        """The codec of a version, or of the primary's.

        Raises:
            UnknownModel, ModelNotReady: no such version, or none is ready.
        """
        if version is not None:
            return self.version(version).codec
        if self.codec is None:
            msg = f"model '{self.model}' has no version that is ready: {self.why_not()}"
            raise ModelNotReady(msg)
        return self.codec

    def version(self, version: str) -> Version:
        """A version that is ready here.

        Raises:
            UnknownModel: not in the repository's loaded set.
            ModelNotReady: known, loading or failed; says which.
        """
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

    def why_not(self) -> str:
        """Why nothing can answer, in words."""
        if not self.states:
            return "no version is loaded"
        return "; ".join(
            f"version {version} is {state}"
            + (f" ({reason})" if reason else " and waits for its route" if state == "ready" else "")
            for version, (state, reason) in sorted(self.states.items())
        )

    def compile(self, route: Any, generation: int, now_ns: int) -> None:
        """Swap in the route as it looks now, with what is ready here."""
        self._pinned = {}
        self.generation = generation
        self.table = None
        self.lease_end_ns = None
        self.codec = self.single = None
        if route is None:
            return
        self.revision = route.revision
        primary = self.versions.get(route.primary.version)
        if primary is not None:
            self.codec = primary.codec
            self.table = table = compile_route(route, generation, self.versions, now_ns)
            only = table.only
            if only is not None and only.version in self.versions:
                self.single = (only, self.versions[only.version])
            self.lease_end_ns = lease_end_ns(route, now_ns)
