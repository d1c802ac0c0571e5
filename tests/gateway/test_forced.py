"""Requests that name their variant, and models that are stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import fleet as words_of
from gateway.api.heads import make_head
from gateway.errors import InvalidRequest
from gateway.head import Head
from gateway.routing import Change, Variant
from tests.gateway.path import Sink, SumSession
from tests.gateway.split import Canary, SplitPath, arms

SHADOW = Variant(name="next", version="3", role="shadow", sample_bp=0)
STOPPED = Change(by="ana", reason="wrong prices", at_ns=5)
BODY = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'


def on_split(
    tmp_path: Path, body: Callable[[SplitPath], Awaitable[None]], *settings: str, canary_bp: int = 0
) -> None:
    """A canary without weight, and a shadow, unless told otherwise."""

    async def main() -> None:
        third = SumSession()
        third.version = "3"
        sessions = {"2": Canary(), "3": third}
        path = SplitPath(tmp_path, arms(canary_bp, SHADOW), sessions, *settings)
        await body(path)
        path.close()

    asyncio.run(main())


def head_of(*headers: tuple[bytes, bytes], path: bytes = b"/v2/models/m/infer") -> Head:
    """As a door reads it."""
    return make_head(lambda *about: msgspec.Raw(), path, headers)


async def sent(path: SplitPath, **head: Any) -> tuple[Sink, Any]:
    """One request and its event; `large` goes the way of large bodies."""
    large = head.pop("large", False)
    sink = Sink()
    if large:
        await path.core.receive_large(path.head(**head), BODY, sink, time.perf_counter_ns())
    else:
        path.send_body(BODY, sink, **head)
    for _ in range(100):
        if sink.status:
            break
        await asyncio.sleep(0)
    path.core.turn()
    (event,) = path.predictions()
    return sink, event


@pytest.mark.parametrize("path", [b"/v2/models/m/infer", b"/v1/models/m:predict"])
def test_the_header_is_read_on_every_address(path: bytes) -> None:
    """Head and name; it goes the uncommon way by its level, which it does not raise."""
    head = head_of((b"x-tidegate-variant", b" canary "), path=path)
    assert (head.variant, head.audit_level) == ("canary", "none")
    assert (
        head_of((b"x-tidegate-variant", b"a"), (b"x-tidegate-audit-level", b"fsync")).audit_level == "fsync"
    )
    assert head_of().variant is None


@pytest.mark.parametrize(
    ("headers", "path", "said"),
    [
        ([b""], b"/v2/models/m/infer", "is empty"),
        ([b"a", b"a"], b"/v2/models/m/infer", "given twice"),
        ([b"a"], b"/v2/models/m/versions/2/infer", "version 2 in the address; expected one of the two"),
    ],
)
def test_a_header_that_cannot_be_meant(headers: list[bytes], path: bytes, said: str) -> None:
    """An empty one, two of them, and one beside a version are refused with what was expected."""
    with pytest.raises(InvalidRequest, match=said):
        head_of(*((b"x-tidegate-variant", value) for value in headers), path=path)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("variant", "version"), [("primary", "1"), ("canary", "2"), ("next", "3")])
def test_the_variant_answers_whatever_its_weight(
    tmp_path: Path, variant: str, version: str, large: bool
) -> None:
    """Reason forced, no weight and no draw, so that it counts for no arm; also a canary of weight 0 and a shadow."""

    async def body(path: SplitPath) -> None:
        sink, event = await sent(path, variant=variant, audit_level="none", large=large)
        assert (sink.status, sink.body["model_version"]) == (200, version)
        route = event.route
        assert (route.reason, route.served, route.assigned, route.weight_bp) == (
            "forced",
            variant,
            None,
            None,
        )
        assert (route.unit_hash, event.audit, event.model.version) == (None, "spool", version)
        assert path.slot(version)[words_of.FORCED] == 1

    on_split(tmp_path, body)


def test_an_unknown_variant_is_told_which_there_are(tmp_path: Path) -> None:
    """400, naming those of the route."""

    async def body(path: SplitPath) -> None:
        sink, event = await sent(path, variant="nobody", audit_level="none")
        assert (sink.status, sink.body["code"]) == (400, "invalid_request")
        assert "'nobody'; model 'sum' has variants primary, canary, next" in sink.body["error"]
        assert event.route is None

    on_split(tmp_path, body)


def test_a_variant_that_is_not_ready_is_a_503(tmp_path: Path) -> None:
    """Nobody else answers for it."""

    async def body(path: SplitPath) -> None:
        path.models.on_change("sum", "3", "failed", "no room")
        sink, _ = await sent(path, variant="next", audit_level="none")
        assert (sink.status, sink.body["code"]) == (503, "model_not_ready")

    on_split(tmp_path, body)


def test_off_loopback_a_token_is_needed_to_name_a_variant(tmp_path: Path) -> None:
    """403 naming the scope; with a token that has it the variant answers."""

    async def body(path: SplitPath) -> None:
        path.core._forces = False
        sink, _ = await sent(path, variant="canary", audit_level="none")
        assert (sink.status, sink.body["code"]) == (403, "forbidden")
        assert "force:sum" in sink.body["error"]
        sink, _ = await sent(path, variant="canary", forces=True, audit_level="none")
        assert sink.status == 200

    on_split(tmp_path, body)


WAYS: dict[str, dict[str, Any]] = {
    "drawn": {},
    "keyed": {"routing_key": "ana"},
    "pinned": {"version": "2"},
    "forced": {"variant": "canary", "audit_level": "none"},
    "v1": {"dialect": "v1"},
    "large": {"large": True},
    "large, pinned": {"version": "1", "large": True},
}


@pytest.mark.parametrize("canary_bp", [0, 5_000])
@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_model_answers_in_no_way(tmp_path: Path, way: str, canary_bp: int) -> None:
    """503 `model_stopped` with Retry-After, by whom and why; with the next document it answers again."""

    async def body(path: SplitPath) -> None:
        route = path.route
        path.publish(msgspec.structs.replace(route, revision=route.revision + 1, stopped=STOPPED))
        sink, event = await sent(path, **WAYS[way])
        assert (sink.status, sink.body["code"]) == (503, "model_stopped")
        assert sink.body["error"].startswith("model 'sum' was stopped by ana (wrong prices)")
        assert 1 <= int(sink.fields["retry-after"]) <= 3
        assert (event.kind, event.code, event.route) == ("refused", "model_stopped", None)
        assert [path.slot(v)[words_of.STOPPED] for v in "123"] == [1, 1, 1]
        assert path.models.ready, "the others go on"
        path.publish(msgspec.structs.replace(route, revision=route.revision + 2))
        if way != "v1":
            sink, _ = await sent(path, **WAYS[way])
            assert sink.status == 200
        assert [path.slot(v)[words_of.STOPPED] for v in "123"] == [0, 0, 0]

    on_split(tmp_path, body, canary_bp=canary_bp)


def test_what_was_taken_before_the_stop_is_answered(tmp_path: Path) -> None:
    """A stop takes in nothing more; what waits already ends as it would have."""

    async def body(path: SplitPath) -> None:
        sink = Sink()
        path.send_body(BODY, sink)
        route = path.route
        path.publish(msgspec.structs.replace(route, revision=route.revision + 1, stopped=STOPPED))
        path.core.turn()
        assert sink.status == 200

    on_split(tmp_path, body)
