"""Control's whole states as readers of the log take them: the routes, and nothing of what stands beside them."""

from __future__ import annotations

from gateway.audit.event import Control
from gateway.control import snapshot
from gateway.control.state import EVERY, State, applied, route_document, whole
from gateway.routing import Change, first_route
from shadow.documents import documents_of

WHY = Change(by="test", reason="because", at_ns=1)


def test_what_stands_beside_the_routes_is_no_route() -> None:
    """`*` holds the revisions of a way back, too: a reader takes none of them for what is in effect."""
    state = State(snapshot.Serving(gateway_id="g", generation=1), snapshot.Ledger(loaded=(("m", "3"),)))
    for revision, version in ((1, "1"), (2, "2")):
        route = first_route("m", version, "ab" * 16, WHY)
        document = {**route_document(route), "revision": revision}
        state = applied(
            state, Control(kind="route", id=f"e{revision}", model="m", revision=revision, after=document)
        )
    (after,) = whole(state)
    assert after[EVERY]["targets"]["m"]["revision"] == 1  # type: ignore[index]
    found = documents_of(Control(kind="routes", id="e3", after=after))
    assert [(d.model, d.revision, d.primary.version) for d in found] == [("m", 2, "2")]
