"""Limits on the real request path: who is over them is told so by the head, and whatever ends a request gives back."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.path import Path_, Sink, SumSession, until
from tests.gateway.test_exactly_once import _LATE_US, ENDS, send

ROW = [1.0, 2.0, 3.0, 4.0]


class Held(Sink):
    """Keeps for how long its connection shall rest."""

    rests_s = 0.0

    def hold_back(self, seconds: float) -> None:
        self.rests_s = seconds


def ask(path: Path_, account: str = "a", values: Any = None) -> Held:
    """One request of one row."""
    sink = Held()
    body = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
    path.send_body(body if values is None else values, sink, account=account)
    return sink


def test_who_is_over_its_rate_is_told_when_to_come_again(tmp_path: Path) -> None:
    """429 `rate_limited` with a Retry-After that differs between clients; its connection rests, others are answered,
    and the refusal stands in the log."""

    async def main() -> None:
        path = Path_(tmp_path, "limits.default.per_s=1", "limits.default.burst=2")
        sinks = [ask(path) for _ in range(40)]
        other = ask(path, "b")
        await until(lambda: other.status)
        assert [sink.status for sink in sinks] == [200, 200] + [429] * 38
        refused = sinks[2:]
        assert {sink.body["code"] for sink in refused} == {"rate_limited"}
        assert "1 requests a second" in refused[0].body["error"]
        assert all(sink.rests_s for sink in refused)
        waits = [int(sink.fields["retry-after"]) for sink in refused]
        assert min(waits) >= 1
        assert len(set(waits)) > 1
        assert other.status == 200
        path.core.turn()
        assert [e.code for e in path.predictions()].count("rate_limited") == 38
        path.close()

    asyncio.run(main())


def test_a_models_share_is_refused_with_503(tmp_path: Path) -> None:
    """Over a model's share nobody is to blame: 503, and the connection is read on."""

    async def main() -> None:
        path = Path_(tmp_path, "limits.models.sum.share_pct=1", "data.inflight_max=300")
        sinks = [ask(path, f"client {number}") for number in range(5)]
        assert [sink.status for sink in sinks] == [0, 0, 0, 503, 503]
        assert sinks[3].body["code"] == "overloaded"
        assert not sinks[3].rests_s
        await until(lambda: sinks[2].status)
        again = ask(path)
        await until(lambda: again.status)
        assert again.status == 200
        path.close()

    asyncio.run(main())


def test_rows_are_charged(tmp_path: Path) -> None:
    """By rows: a large request is taken, and what comes at once behind it is refused."""

    async def main() -> None:
        path = Path_(tmp_path, "limits.default.per_s=10", "limits.default.unit=rows")
        rows = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[50,4],"data":[%b]}]}' % b",".join(
            [b"1"] * 200
        )
        large, behind = ask(path, values=rows), ask(path)
        await until(lambda: large.status)
        assert (large.status, behind.status) == (200, 429)
        assert int(behind.fields["retry-after"]) >= 4
        path.close()

    asyncio.run(main())


async def ends(directory: Path, kinds: list[str], lane: bool, policy: str) -> None:
    """Send requests that end in each of these ways, and look at what is held afterwards."""
    session = SumSession()
    session.inline_allowed = not lane
    path = Path_(
        directory,
        "limits.default.per_s=1000000",
        "limits.models.sum.share_pct=90",
        f"audit.on_unavailable={policy}",
        "audit.append_timeout_ms=5",
        "audit.capture_max_bytes=40",
        "batch.lanes=2",
        session=session,
        ring_bytes=16 << 10,
    )
    path.core.models.entries["sum"].versions["1"].free_rows = 1 << 20
    for number, kind in enumerate(kinds):
        send(path, kind, number)
    if "late" in kinds:
        time.sleep(_LATE_US / 1e6)
    shares = path.core.admission.shares
    assert shares is not None

    def over() -> bool:
        path.events()
        return path.core.inflight == 0

    await until(over)
    assert shares.inflight_of("sum") == 0
    assert [(account.inflight, account.bytes) for account in shares.accounts()] in ([], [(0, 0)])
    path.close()


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(ENDS), min_size=1, max_size=16),
    lane=st.booleans(),
    policy=st.sampled_from(["degrade", "fail"]),
)
def test_whatever_becomes_of_it_what_it_held_is_given_back(kinds: list[str], lane: bool, policy: str) -> None:
    """Answered, failed, refused, expired, unread or unlogged: nothing stays with its principal or its model."""
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(ends(Path(directory), kinds, lane, policy))
