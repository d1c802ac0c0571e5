"""Every request is answered once, logged once, counted once and let go once, however it ends; by a canary or the
primary, or by both in turn."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import counting
from gateway import fleet as words_of
from tests.gateway.path import Path_, Sink, SumSession, until
from tests.gateway.split import Canary, SplitPath, arms

ENDS = (
    "good",
    "bad",
    "unlucky",
    "nan",
    "empty",
    "gone",
    "late",
    "misshapen",
    "unknown",
    "wordy",
    "fsync",
    "unlogged",
    "formed",
)
"""What becomes of a request; `bad` ones fail everywhere, `unlucky` and `nan` ones with the canary; `wordy` ones have
parameters that are larger than a frame of a small ring."""
REFUSED = {"misshapen", "unknown"}
_LATE_US, _USUAL_US = 15_000, 5_000_000


class Once(Sink):
    """Takes one reply, of any form."""

    def reply(self, status: int, fields: bytes, body: bytes) -> None:
        assert not self.status, "answered twice"
        assert not self.disconnected, "answered though nobody waits"
        self.status, self.body = status, body


def send(path: Path_, end: str, number: int) -> Once:
    """One request that is to end so."""
    rows = 0 if end == "empty" else 1 + number % 3
    data = [float(number)] * (rows * 4)
    if end in {"bad", "unlucky", "nan"}:
        data[0] = {"bad": 666, "unlucky": 13, "nan": 17}[end]
    request: dict[str, Any] = {
        "id": f"r{number}",
        "inputs": [{"name": "X", "datatype": "FP32", "shape": [rows, 4], "data": data}],
        "parameters": {"timeout": _LATE_US if end == "late" else _USUAL_US},
    }
    if end == "misshapen":
        request["inputs"][0]["shape"] = [rows, 5]
    if end == "wordy":
        request["parameters"]["text"] = "x" * 15_000
    if end == "formed":
        request["parameters"]["binary_data_output"] = True
    sink = Once()
    head: dict[str, Any] = {"model": "nobody"} if end == "unknown" else {}
    if end in {"fsync", "unlogged"}:
        head["audit_level"] = "fsync" if end == "fsync" else "none"
    path.send_body(orjson.dumps(request), sink, **head)
    sink.disconnected = end == "gone"
    return sink


async def held(
    directory: Path, ends: list[str], lanes: tuple[bool, bool], policy: str, ring_bytes: int
) -> None:
    """Send them in one turn and hold replies, log and counters against each other."""
    sessions = {"1": SumSession(), "2": Canary()}
    for session, lane in zip(sessions.values(), lanes, strict=True):
        session.inline_allowed = not lane
    path = SplitPath(
        directory,
        arms(),
        sessions,
        f"audit.on_unavailable={policy}",
        "audit.append_timeout_ms=5",
        "audit.capture_max_bytes=40",
        "batch.lanes=2",
        ring_bytes=ring_bytes,
    )
    for version in path.core.models.entries["sum"].versions.values():
        version.free_rows = 1 << 20
    sinks = [send(path, end, number) for number, end in enumerate(ends)]
    if "late" in ends:
        time.sleep(_LATE_US / 1e6)
    logged: list[Any] = []

    def answered() -> bool:
        logged.extend(path.events())
        return path.core.inflight == 0 and all(
            sink.status for sink, end in zip(sinks, ends, strict=True) if end != "gone"
        )

    await until(answered)
    for _ in range(3):
        path.core.turn()
        await asyncio.sleep(0.002)
        logged += path.events()
    path.appender.flush()
    path.core.turn()
    logged += path.events()
    for sink, end in zip(sinks, ends, strict=True):
        assert (sink.status == 0) == (end == "gone")
    counting.publish()
    for version in sessions:
        slot = path.slot(version)
        kinds = [slot[w] for w in (words_of.DONE, words_of.FAILED, words_of.CANCELLED, words_of.EXPIRED)]
        assert sum(kinds) == slot[words_of.ADMITTED] == slot[words_of.RECORDED]
        assert path.core.models.entries["sum"].versions[version].awaited == 0
    retried = path.slot("2")[words_of.RETRIED]
    admitted = sum(path.slot(version)[words_of.ADMITTED] for version in sessions)
    assert admitted == len(ends) - path.core.refused + retried
    tried = [e.first_try for e in logged if type(e).__name__ == "Prediction" and e.first_try is not None]
    assert len(tried) <= retried
    assert path.core.refused >= sum(end in REFUSED for end in ends)
    recorded = sum(e.count for e in logged if type(e).__name__ == "Prediction")
    gaps = sum(e.to_seq - e.from_seq + 1 for e in logged if type(e).__name__ == "Gap")
    # Where nothing may leave unlogged, and the ring takes no more, the answer says so.
    unlogged = sum(b'"audit_unavailable"' in (sink.body or b"") for sink in sinks)
    assert unlogged == 0 or policy == "fail"
    assert recorded + gaps + unlogged == len(ends)
    path.close()


@settings(max_examples=60, deadline=None)
@given(
    ends=st.lists(st.sampled_from(ENDS), min_size=1, max_size=24),
    lanes=st.tuples(st.booleans(), st.booleans()),
    policy=st.sampled_from(["degrade", "fail"]),
    ring_bytes=st.sampled_from([16 << 10, 1 << 20]),
)
@example(ends=["wordy", "good", "good"], lanes=(False, False), policy="degrade", ring_bytes=16 << 10)
@example(ends=["unlucky", "nan"] * 12, lanes=(False, True), policy="degrade", ring_bytes=1 << 20)
@example(ends=["unlucky", "nan"] * 12, lanes=(True, False), policy="fail", ring_bytes=16 << 10)
def test_whatever_becomes_of_it_each_request_counts_once(
    ends: list[str], lanes: tuple[bool, bool], policy: str, ring_bytes: int
) -> None:
    """One answer (none to who left), one place in the log, one count, and nothing stays in flight."""
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(held(Path(directory), ends, lanes, policy, ring_bytes))


def test_a_reply_that_cannot_be_made_answers_all_of_its_frame_once() -> None:
    """Those before it have their answer, it and those behind it get `internal`, none gets two."""

    async def main(directory: Path) -> None:
        path = Path_(directory)
        version = path.core.models.entries["sum"].versions["1"]
        made = version.encoder.literals

        def literals(rows: int, outputs: Any, wanted: Any) -> Any:
            if rows == 2:
                msg = "cannot be made"
                raise ValueError(msg)
            return made(rows, outputs, wanted)

        version.encoder.literals = literals
        sinks = [Once() for _ in range(4)]
        for sink, rows in zip(sinks, (1, 2, 1, 1), strict=True):
            tensor = {"name": "X", "datatype": "FP32", "shape": [rows, 4], "data": [1.0] * 4 * rows}
            path.send_body(orjson.dumps({"inputs": [tensor]}), sink)
        sinks[2].disconnected = True
        await until(lambda: path.core.inflight == 0)
        assert [sink.status for sink in sinks] == [200, 500, 0, 500]
        path.core.turn()
        assert sum(event.count for event in path.predictions()) == 4
        path.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))
