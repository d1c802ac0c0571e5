"""Who has a request recorded whole above `audit.capture_max_bytes`: a shadow, its version, the request itself."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from gateway import recording
from gateway.api.heads import make_head
from gateway.audit.sampling import in_sample
from gateway.capture import check_room
from gateway.control import snapshot
from gateway.errors import InvalidRequest
from gateway.routing import Change, Variant, first_route
from loaders.bundle import AuditSettings, BundleSettings
from loaders.errors import BundleInvalid
from loaders.signature import Signature, TensorSpec
from tests.gateway.path import Path_, Sink, SumSession, until

LIMIT = "audit.capture_max_bytes=40"
"""Two rows of 16 + 4 bytes."""
SMALL, LARGE = 2, 3


def made(rows: int, **more: Any) -> bytes:
    """A body of so many rows."""
    tensor = {"name": "X", "datatype": "FP32", "shape": [rows, 4], "data": [n % 600 for n in range(4 * rows)]}
    return orjson.dumps({"inputs": [tensor], **more})


async def asked(path: Path_, body: bytes, **head: Any) -> tuple[Sink, Any]:
    """The reply and the record of one request."""
    sink = Sink()
    path.send_body(body, sink, **head)
    await until(lambda: sink.status)
    path.core.turn()
    (event,) = path.predictions()
    return sink, event


def whole(**audit: Any) -> SumSession:
    """A version with settings of its own."""
    session = SumSession()
    session.bundle.settings = BundleSettings(audit=AuditSettings(**audit))
    return session


WISHES = [
    ({}, {}, None),
    ({"audit_level": "none", "captures_full": True}, {}, "full"),
    ({}, {"parameters": {"audit_capture": "full"}}, "full"),
    ({}, {"parameters": {"audit_capture": "hash"}}, None),
]


@pytest.mark.parametrize("inline_us", [1000, 0])
@pytest.mark.parametrize(("head", "body", "said"), WISHES)
@pytest.mark.parametrize("rows", [SMALL, LARGE])
def test_a_request_may_ask_for_more(
    tmp_path: Path, rows: int, head: dict[str, Any], body: dict[str, Any], said: str | None, inline_us: int
) -> None:
    """By header or parameter, on the loop or on a lane: its record is whole, and the reply says so."""

    async def main() -> None:
        path = Path_(tmp_path, LIMIT, f"batch.inline_us={inline_us}")
        sink, event = await asked(path, made(rows, **body), **head)
        assert sink.fields.get("x-tidegate-audit-capture") == said
        assert event.capture == ("full" if rows == SMALL or said else "hash")
        assert event.audit == "spool"
        data = np.arange(4 * rows, dtype="<f4").tobytes()
        found = event.inputs[0]
        assert found.data == (data if event.capture == "full" else None)
        if event.capture == "hash":
            assert found.sha256 == hashlib.sha256(data).hexdigest()
        path.close()

    asyncio.run(main())


@pytest.mark.parametrize("inline_us", [1000, 0])
def test_what_does_not_fit_a_frame_is_by_hash_and_told(tmp_path: Path, inline_us: int) -> None:
    """An eighth of the ring bounds every wish; header and record say `hash`, and the digest is right."""

    async def main() -> None:
        path = Path_(tmp_path, LIMIT, f"batch.inline_us={inline_us}", ring_bytes=65_536)
        sink, event = await asked(path, made(500), audit_level="none", captures_full=True)
        assert (sink.status, sink.fields["x-tidegate-audit-capture"]) == (200, "hash")
        assert event.capture == "hash"
        data = (np.arange(2000, dtype="<f4") % 600).tobytes()
        assert event.inputs[0].sha256 == hashlib.sha256(data).hexdigest()
        path.close()

    asyncio.run(main())


def test_wishes_take_at_most_half_of_the_ring(tmp_path: Path) -> None:
    """While the disk stands still: who asked is told `hash`, and others' requests are recorded as ever."""

    async def main() -> None:
        path = Path_(tmp_path, LIMIT, "batch.inline_us=1000", "audit.append_timeout_ms=0", ring_bytes=65_536)
        wishes = [Sink() for _ in range(30)]
        for sink in wishes:
            path.send_body(made(100, parameters={"audit_capture": "full"}), sink)
            await until(lambda sink=sink: sink.status)
        said = [sink.fields["x-tidegate-audit-capture"] for sink in wishes]
        assert said == sorted(said)
        assert {"full", "hash"} == set(said)
        other = Sink()
        path.send_body(made(LARGE), other)
        await until(lambda: other.status)
        assert {sink.fields["x-tidegate-audit"] for sink in [*wishes, other]} == {"spool"}
        path.core.turn()
        assert [event.capture for event in path.predictions()] == [*said, "hash"]
        path.close()

    asyncio.run(main())


def test_a_version_may_ask_for_all_its_requests(tmp_path: Path) -> None:
    """bundle.toml's audit.capture; the reply speaks only where it could not be done."""

    async def main() -> None:
        path = Path_(tmp_path, LIMIT, session=whole(capture="full"), ring_bytes=65_536)
        sink, event = await asked(path, made(LARGE))
        assert event.capture == "full"
        assert "x-tidegate-audit-capture" not in sink.fields
        sink, event = await asked(path, made(500))
        assert (event.capture, sink.fields["x-tidegate-audit-capture"]) == ("hash", "hash")
        path.close()

    asyncio.run(main())


def with_shadow(path: Path_, sample_bp: int) -> None:
    """A route whose shadow sees a share."""
    change = Change(by="test", reason="test")
    route = first_route("sum", "1", "aa" * 16, change)
    shadow = Variant(name="next", version="2", role="shadow", sample_bp=sample_bp)
    route = type(route)(
        model="sum", revision=2, variants=(*route.variants, shadow), changed=change, salt=route.salt
    )
    serving = snapshot.Serving(
        gateway_id="00" * 8,
        generation=2,
        routes={"sum": route},
        versions=(snapshot.DesiredVersion(model="sum", version="1", slot=0),),
    )
    snapshot.write(path.snapshot_path, snapshot.encode(serving, snapshot.Ledger()))
    path.fleet.publish_generation(2)
    path.models.poll()


@pytest.mark.parametrize("inline_us", [1000, 0])
def test_what_a_shadow_will_answer_is_whole(tmp_path: Path, inline_us: int) -> None:
    """Exactly the requests that the mirror samples, by the unit in the record; others stay by hash."""

    async def main() -> None:
        random.seed(7)
        path = Path_(tmp_path, LIMIT, f"batch.inline_us={inline_us}")
        with_shadow(path, 3000)
        sinks = [Sink() for _ in range(200)]
        events: list[Any] = []
        for sink in sinks:
            path.send_body(made(LARGE), sink)
            await asyncio.sleep(0)
            events += path.predictions()
        await until(lambda: all(sink.status for sink in sinks))
        events += path.predictions()
        assert len(events) == 200
        for event in events:
            sampled = in_sample(int(event.route.unit_hash, 16), 3000)
            assert event.capture == ("full" if sampled else "hash")
        assert 30 < sum(event.capture == "full" for event in events) < 90
        assert not any("x-tidegate-audit-capture" in sink.fields for sink in sinks)
        path.close()

    asyncio.run(main())


def test_a_pinned_request_has_no_shadow(tmp_path: Path) -> None:
    """What names its version is outside of every comparison: it is recorded as if no shadow were there."""

    async def main() -> None:
        path = Path_(tmp_path, LIMIT)
        with_shadow(path, 10_000)
        _, event = await asked(path, made(LARGE), version="1")
        assert event.capture == "hash"
        path.close()

    asyncio.run(main())


def test_a_wish_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    """Another value of the parameter is 400, and says what is expected."""

    async def main() -> None:
        path = Path_(tmp_path, LIMIT)
        sink, event = await asked(path, made(SMALL, parameters={"audit_capture": "all"}))
        assert (sink.status, event.kind) == (400, "refused")
        assert "'all'; expected one of hash, full" in sink.body["error"]
        path.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("shape", "datatype", "batchable", "said"),
    [
        ((-1, 4), "FP32", True, None),
        ((-1, 20_000), "FP32", True, "a row takes"),
        ((20_000,), "FP32", False, "a row takes"),
        ((-1, -1), "FP32", True, "tensor 'X' (FP32 [-1, -1]) has no size of its own"),
        ((-1,), "BYTES", True, "has no size of its own"),
        ((-1, 4), "FP32", False, "has no size of its own"),
    ],
)
def test_a_version_whose_rows_no_record_takes_is_refused(
    shape: tuple[int, ...], datatype: str, batchable: bool, said: str | None
) -> None:
    """`audit.capture = "full"` is a promise: where one row can break it, the version does not load."""
    signature = Signature(
        (TensorSpec("X", datatype, shape),), (TensorSpec("Y", "FP32", (-1, 1) if batchable else (1, 1)),)
    )
    session = SumSession(signature, batchable=batchable)
    check_room(session, 65_536)
    session.bundle.settings = BundleSettings(audit=AuditSettings(capture="full"))
    if said is None:
        check_room(session, 65_536)
        return
    with pytest.raises(BundleInvalid, match=r'sum/1/bundle.toml: audit.capture is "full"') as told:
        check_room(session, 65_536)
    assert said in str(told.value)


def test_what_is_recorded_whole_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a lane digests are made for records by hash only: of megabytes they would cost as much as the run."""
    hashed: list[int] = []
    counted = SimpleNamespace(sha256=lambda data: hashed.append(len(data)) or hashlib.sha256(data))
    monkeypatch.setattr(recording, "hashlib", counted)

    async def main() -> None:
        path = Path_(tmp_path, LIMIT, "batch.inline_us=0")
        _, event = await asked(path, made(LARGE), audit_level="none", captures_full=True)
        assert (event.capture, hashed) == ("full", [])
        _, event = await asked(path, made(LARGE))
        assert (event.capture, hashed) == ("hash", [48, 12])
        path.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("lines", "level", "captures_full"),
    [
        ([], None, False),
        ([b"full"], "none", True),
        ([b" Full "], "none", True),
        ([b"hash"], None, False),
        ([b"full", b"fsync"], "fsync", True),
    ],
)
def test_a_head_says_so(lines: list[bytes], level: str | None, captures_full: bool) -> None:
    """The header is read as the level's is; with it alone the level raises nothing, but leaves the common way."""
    names = (b"x-tidegate-audit-capture", b"x-tidegate-audit-level")
    head = make_head(lambda *_: msgspec.Raw(b""), b"/v2/models/sum/infer", zip(names, lines, strict=False))
    assert (head.audit_level, head.captures_full) == (level, captures_full)


@pytest.mark.parametrize(
    ("lines", "said"),
    [([b"all"], "is 'all'; expected one of hash, full"), ([b"full", b"full"], "is given twice")],
)
def test_a_head_that_cannot_be_meant_is_refused(lines: list[bytes], said: str) -> None:
    """Another value, or two of them, is 400 with the header's name."""
    headers = [(b"x-tidegate-audit-capture", line) for line in lines]
    with pytest.raises(InvalidRequest, match=f"x-tidegate-audit-capture {said}"):
        make_head(lambda *_: msgspec.Raw(b""), b"/v2/models/sum/infer", headers)
