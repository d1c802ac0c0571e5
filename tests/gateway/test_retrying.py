"""What a canary cannot answer the primary does: one answer, one record, and what it says of the canary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from gateway import counting
from gateway import fleet as words_of
from loaders.signature import Signature, TensorSpec
from tests.gateway.path import Path_, Sink, SumSession, until
from tests.gateway.split import Canary, SplitPath, arms

BAD = [13.0, 0, 0, 0]
NOT_FINITE = [17.0, 0, 0, 0]
GOOD = [1.0, 2, 3, 4]
BOTH_FAIL = [666.0, 0, 0, 0]


def on_split(
    tmp_path: Path,
    body: Callable[[SplitPath], Awaitable[None]],
    *settings: str,
    lane: bool = False,
    **more: Any,
) -> None:
    """Half of the traffic to a canary that fails on 13."""

    async def main() -> None:
        canary = more.get("canary") or Canary()
        canary.inline_allowed = not lane
        path = SplitPath(tmp_path, more.get("variants", arms()), {"2": canary}, *settings)
        await body(path)
        path.close()

    asyncio.run(main())


async def answered(path: Path_, *sinks: Sink) -> list[Any]:
    """Wait for all; the predictions logged."""
    await until(lambda: all(sink.status for sink in sinks))
    path.core.turn()
    return path.predictions()


@pytest.fixture
def draws_canary(monkeypatch: pytest.MonkeyPatch) -> Callable[[SplitPath], None]:
    """Let every draw of a path fall on its canary, each on another unit."""

    def begin(path: SplitPath) -> None:
        unit = path.drawn("canary")
        numbers = iter(range(1 << 30))
        monkeypatch.setattr("gateway.core._bits", lambda bits: unit + 10_000 * next(numbers))

    return begin


@pytest.mark.parametrize("lane", [False, True])
@pytest.mark.parametrize(("values", "code"), [(BAD, "inference_failed"), (NOT_FINITE, "nonfinite")])
def test_the_primary_answers_and_the_record_says_why(
    tmp_path: Path, draws_canary: Any, lane: bool, values: list[float], code: str
) -> None:
    """One reply from version 1; one record: drawn for the canary at its weight, served by the primary, reason retry."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        sink = path.send(values)
        (event,) = await answered(path, sink)
        assert (sink.status, sink.body["model_version"]) == (200, "1")
        assert sink.body["outputs"][0]["data"] == [values[0]]
        route = event.route
        assert (route.assigned, route.served, route.weight_bp, route.reason) == (
            "canary",
            "primary",
            5_000,
            "retry",
        )
        assert (event.kind, event.model.version, event.degraded) == ("done", "1", ())
        assert event.first_try == {"version": "2", "code": code}
        assert path.core.inflight == 0

    on_split(tmp_path, body, lane=lane)


@pytest.mark.parametrize("lane", [False, True])
def test_mates_in_the_run_stay_with_the_canary(tmp_path: Path, draws_canary: Any, lane: bool) -> None:
    """Of a run only those whose output is not finite go again; each has its own rows, in the reply and the record."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        rows = [[GOOD, GOOD], [NOT_FINITE], [[2.0] * 4], [GOOD, NOT_FINITE, GOOD], [[3.0] * 4, [4.0] * 4]]
        sinks = [path.send(some) for some in rows]
        events = await answered(path, *sinks)
        sums = [[sum(row) for row in some] for some in rows]
        assert [sink.body["outputs"][0]["data"] for sink in sinks] == sums
        assert [sink.body["model_version"] for sink in sinks] == ["2", "1", "2", "1", "2"]
        found = {}
        for event in events:
            assert (event.first_try is not None) == (event.model.version == "1")
            assert event.degraded == ()
            found[event.id] = (event.rows, event.outputs[0].shape, len(event.inputs[0].data))
        asked = [(len(some), (len(some), 1), len(some) * 16) for some in rows]
        assert [found[sink.fields["x-prediction-id"]] for sink in sinks] == asked

    on_split(tmp_path, body, lane=lane)


class Short(Canary):
    """Leaves the last row of a run out."""

    def run(self, feeds: dict[str, Any], names: Any = None, options: Any = None) -> list[Any]:
        return [super().run(feeds, names, options)[0][:-1]]


@pytest.mark.parametrize("lane", [False, True])
@pytest.mark.parametrize("values", [GOOD, NOT_FINITE])
def test_outputs_of_another_number_of_rows_are_a_failure(
    tmp_path: Path, draws_canary: Any, lane: bool, values: list[float]
) -> None:
    """Whose rows they are nobody knows: the primary answers all of them, finite or not."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        sinks = [path.send(values) for _ in range(3)]
        events = await answered(path, *sinks)
        assert {(sink.status, sink.body["model_version"]) for sink in sinks} == {(200, "1")}
        assert [event.first_try["code"] for event in events] == ["inference_failed"] * 3
        assert path.core.inflight == 0

    on_split(tmp_path, body, lane=lane, canary=Short())


def test_a_request_that_both_fail_fails_once(tmp_path: Path, draws_canary: Any) -> None:
    """The primary's error is told; the record has both tries, and it counts against no canary."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        sinks = [path.send(BOTH_FAIL) for _ in range(6)]
        events = await answered(path, *sinks)
        assert {sink.status for sink in sinks} == {500}
        assert {(e.kind, e.code, e.model.version) for e in events} == {("failed", "inference_failed", "1")}
        assert [e.first_try["code"] for e in events] == ["inference_failed"] * 6
        assert not path.models.get("sum").breakers["canary"].is_open

    on_split(tmp_path, body)


@pytest.mark.parametrize(
    ("head", "reason"),
    [({"version": "2"}, "pinned"), ({"variant": "canary", "audit_level": "none"}, "forced")],
)
def test_who_names_the_version_gets_its_answer(tmp_path: Path, head: dict[str, Any], reason: str) -> None:
    """Pinned and forced requests are not tried elsewhere: somebody looks at that version."""

    async def body(path: SplitPath) -> None:
        sink = path.send(BAD, **head)
        (event,) = await answered(path, sink)
        assert sink.status == 500
        assert (event.route.reason, event.first_try, event.model.version) == (reason, None, "2")

    on_split(tmp_path, body)


def test_drawn_by_a_key_it_stays_so(tmp_path: Path) -> None:
    """The reason `key` stands in the record of the retry as well: it proves nothing about an arm."""

    async def body(path: SplitPath) -> None:
        sink = path.send(BAD, routing_key=path.key_of("canary"))
        (event,) = await answered(path, sink)
        assert sink.status == 200
        assert (event.route.reason, event.route.served) == ("key", "primary")
        assert event.first_try == {"version": "2", "code": "inference_failed"}

    on_split(tmp_path, body)


def test_without_time_left_it_fails_where_it_is(tmp_path: Path, draws_canary: Any) -> None:
    """A run of the primary that would not end before the deadline is not begun."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        path.models.get("sum").version("1").cost.slowdown = 1e9
        sink = path.send(BAD)
        (event,) = await answered(path, sink)
        assert (sink.status, event.model.version, event.route.reason) == (500, "2", "weight")

    on_split(tmp_path, body)


def test_another_signature_is_not_read_again(tmp_path: Path, draws_canary: Any) -> None:
    """The body is not kept: what the primary would read in another way fails at the canary."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        sink = path.send(BAD)
        (event,) = await answered(path, sink)
        assert (sink.status, event.model.version, event.first_try) == (500, "2", None)

    names = Signature((TensorSpec("X", "FP32", (-1, 4)),), (TensorSpec("Z", "FP32", (-1, 1)),))
    on_split(tmp_path, body, canary=Canary(names))


def test_who_left_is_not_served_again(tmp_path: Path, draws_canary: Any) -> None:
    """A request whose client is gone is recorded as the canary left it."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        canary = path.sessions["2"]
        ran, sink = canary.run, Sink()

        def run(*args: Any) -> Any:
            sink.disconnected = True
            return ran(*args)

        canary.run = run
        path.send_body(
            orjson.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": BAD}]}), sink
        )
        await until(lambda: path.core.inflight == 0)
        path.core.turn()
        (event,) = path.predictions()
        assert (event.model.version, event.first_try, sink.status) == ("2", None, 0)

    on_split(tmp_path, body)


@pytest.mark.parametrize("lane", [False, True])
def test_three_failures_open_the_breaker_until_the_next_revision(
    tmp_path: Path, draws_canary: Any, lane: bool
) -> None:
    """Then the primary has the canary's units, which stay assigned to it at their weight; the log has one event."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        for _ in range(3):
            await answered(path, path.send(BAD))
        path.core.turn()
        canary = path.sessions["2"]
        ran = len(canary.runs)
        sink = path.send(GOOD)
        (event,) = await answered(path, sink)
        route = event.route
        assert (route.assigned, route.served, route.weight_bp, route.reason) == (
            "canary",
            "primary",
            5_000,
            "fallback",
        )
        assert len(canary.runs) == ran
        slot = path.slot("2")
        assert [slot[w] for w in (words_of.BREAKER_REVISION, words_of.BREAKER_COUNTS, words_of.RETRIED)] == [
            2,
            3,
            3,
        ]
        path.publish(path.route)  # another generation of the same revision
        (event,) = await answered(path, path.send(GOOD))
        assert event.route.reason == "fallback"
        path.shift(4_000)
        assert slot[words_of.BREAKER_REVISION] == 0
        (event,) = await answered(path, path.send(GOOD))
        assert (event.route.reason, event.route.served) == ("weight", "canary")

    on_split(tmp_path, body, lane=lane)


def test_an_open_breaker_is_told_once(tmp_path: Path, draws_canary: Any) -> None:
    """A control event of kind `breaker` with variant, version, worker and what was counted; it is no route document."""

    async def body(path: SplitPath) -> None:
        path.models.log_event = path.appender.log
        draws_canary(path)
        sinks = [path.send(BAD) for _ in range(8)]
        await until(lambda: all(sink.status for sink in sinks))
        path.core.turn()
        found = [e for e in path.events() if type(e).__name__ == "Control"]
        assert [(e.kind, e.model, e.revision, e.by) for e in found] == [("breaker", "sum", 2, "worker-0")]
        after = found[0].after
        assert (after["variant"], after["version"], after["counts"], after["units"]) == ("canary", "2", 3, 3)
        assert "variants" not in after
        assert found[0].gateway_id == "00" * 8

    on_split(tmp_path, body)


def test_a_breaker_of_an_earlier_revision_opens_nothing(tmp_path: Path, draws_canary: Any) -> None:
    """Retries that are under way while the route changes count where they were drawn: the open breaker of the present
    revision is not told again."""

    async def body(path: SplitPath) -> None:
        entry = path.models.get("sum")
        assert entry is not None
        draws_canary(path)
        earlier, told = entry.versions["2"].retries, []
        entry.on_open = lambda entry, variant, breaker: told.append(variant)
        path.shift(4_000)
        sinks = [path.send(BAD) for _ in range(8)]
        await until(lambda: all(sink.status for sink in sinks))
        assert (told, entry.breakers["canary"].is_open) == (["canary"], True)
        for unit in range(3):
            late = SimpleNamespace(assignment=entry.table.pick(path.drawn("canary")), unit=unit)
            earlier.answered(late, time.perf_counter_ns())
        assert earlier.breakers["canary"].is_open
        assert told == ["canary"]

    on_split(tmp_path, body)


def test_one_callers_bad_luck_opens_nothing(tmp_path: Path) -> None:
    """A hundred failures under one routing key are one unit."""

    async def body(path: SplitPath) -> None:
        key = path.key_of("canary")
        sinks = [path.send(BAD, routing_key=key) for _ in range(100)]
        await answered(path, *sinks)
        breaker = path.models.get("sum").breakers["canary"]
        assert (breaker.is_open, breaker.counts, breaker.units) == (False, 100, 1)

    on_split(tmp_path, body)


def test_a_primary_that_fails_as_often_keeps_it_shut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over twenty times the primary's own rate is asked; retries are none of its own requests."""

    async def body(path: SplitPath) -> None:
        primary, canary = path.drawn("primary"), path.drawn("canary")
        numbers = iter(range(1, 1 << 30))
        for number in range(40):
            drawn = canary if number % 4 == 0 else primary
            monkeypatch.setattr(
                "gateway.core._bits", lambda bits, drawn=drawn: drawn + 10_000 * next(numbers)
            )
            bad = number % 8
            await answered(path, path.send({0: BAD, 1: BOTH_FAIL}.get(bad, GOOD)))
            counting.publish()
            if number % 10 == 9:
                path.publish(path.route)  # other generations come and go
        breaker = path.models.get("sum").breakers["canary"]
        assert breaker.counts == 5
        assert not breaker.is_open
        assert breaker.window == (9, 24, 4)

    on_split(tmp_path, body)


def test_a_primary_that_is_loaded_again_begins_anew(tmp_path: Path, draws_canary: Any) -> None:
    """Its totals start over: what was counted against the canary does not stand against them; an open breaker stays."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        entry = path.models.get("sum")
        await answered(path, path.send(BAD))
        path.models.on_change("sum", "1", "ready", None)
        assert entry.breakers["canary"].counts == 0
        for _ in range(3):
            await answered(path, path.send(BAD))
        assert entry.breakers["canary"].is_open
        path.models.on_change("sum", "1", "ready", None)
        assert entry.breakers["canary"].is_open

    on_split(tmp_path, body)


@pytest.mark.parametrize("why", ["gone", "late"])
def test_a_retry_that_never_runs_is_awaited_no_longer(tmp_path: Path, draws_canary: Any, why: str) -> None:
    """Its client leaves, or its time is over, while it waits for the primary: nobody looks out for it any more."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        primary = path.models.get("sum").version("1")
        sink = path.send(BAD, timeout_ms=200)
        path.core.turn()
        assert (primary.awaited, primary.looks) == (1, True)
        waiting = primary.queue._by_key[next(iter(primary.queue._by_key))][0]
        if why == "gone":
            sink.disconnected = True
        else:
            waiting.deadline_ns = 1
        await until(lambda: path.core.inflight == 0)
        assert (primary.awaited, primary.looks) == (0, False)
        assert path.slot("1")[words_of.RECORDED] == path.slot("1")[words_of.ADMITTED] == 1

    on_split(tmp_path, body)


def test_counters_balance_over_both_versions(tmp_path: Path, draws_canary: Any) -> None:
    """What was handed over failed at the canary and is recorded there; the primary admitted and recorded it."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        sinks = [path.send(some) for some in (BAD, GOOD, NOT_FINITE, BOTH_FAIL)]
        await answered(path, *sinks)
        counting.publish()
        words = (words_of.ADMITTED, words_of.RECORDED, words_of.DONE, words_of.FAILED, words_of.RETRIED)
        assert [path.slot("2")[w] for w in words] == [4, 4, 1, 3, 3]
        assert [path.slot("1")[w] for w in words] == [3, 3, 2, 1, 0]
        assert path.models.get("sum").version("1").awaited == 0

    on_split(tmp_path, body)


def test_inline_and_lane_versions_answer_each_other(tmp_path: Path, draws_canary: Any) -> None:
    """A canary on lanes hands over to a primary on the loop, and its answer does not wait for other traffic."""

    async def body(path: SplitPath) -> None:
        draws_canary(path)
        sink = path.send(BAD)
        await until(lambda: sink.status, 2)
        assert sink.status == 200

    on_split(tmp_path, body, lane=True)
    (tmp_path / "other").mkdir()

    async def main() -> None:
        primary = SumSession()
        primary.inline_allowed = False
        path = SplitPath(tmp_path / "other", arms(), {"1": primary, "2": Canary()})
        draws_canary(path)
        await body(path)
        path.close()

    asyncio.run(main())
