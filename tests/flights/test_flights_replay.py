"""The sender against a small server of this file: order, labels behind the clock, at most once, what is counted."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.flights.data import Flights
from examples.flights.replay import Answered, Plan, Replay, Unreachable

Rule = Callable[[str, int], int | None]
"""From path and number of the request on it to a status; None: take the request and end the connection."""


class Server:
    """Answers inference with an id, feedback with 202; `rule` may say otherwise."""

    def __init__(self) -> None:
        self.rule: Rule = lambda path, _: 202 if path.endswith("feedback") else 200
        self.seen: list[dict[str, Any]] = []
        self.batches: list[list[dict[str, Any]]] = []
        self.on_labels: Callable[[list[dict[str, Any]]], None] = lambda _: None
        self.counts: Counter[str] = Counter()
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def labels(self) -> list[dict[str, Any]]:
        """All labels taken."""
        return [label for batch in self.batches for label in batch]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split(" ")[1]
                length = next(int(x[15:]) for x in head.split("\r\n") if x.startswith("content-length:"))
                body = json.loads(await reader.readexactly(length))
                number, self.counts[path] = self.counts[path], self.counts[path] + 1
                status = self.rule(path, number)
                if path.endswith("infer"):
                    self.seen.append(body)
                elif status == 202:
                    self.on_labels(body["labels"])
                    self.batches.append(body["labels"])
                if status is None:
                    break
                extra = f"x-prediction-id: p-{body['id']}\r\n" if path.endswith("infer") else ""
                writer.write(f"HTTP/1.1 {status} OK\r\ncontent-length: 2\r\n{extra}\r\n{{}}".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def served(port: int = 0) -> AsyncIterator[Server]:
    """A server on a free port of loopback."""
    server = Server()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(connected, "127.0.0.1", port)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening.wait_closed()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine, 20 s at most."""

    async def bounded() -> None:
        await asyncio.wait_for(test(), 20)

    asyncio.run(bounded())


def first(flights: Flights, count: int) -> Flights:
    """A copy of so many of them."""
    return Flights(*(array[:count].copy() for array in flights))


def test_every_flight_once_and_its_label(few_flights: Flights, tmp_path: Path) -> None:
    """Rows, event times and labels arrive as they are in the data; the ledger holds what was answered."""
    flights = first(few_flights, 300)
    flights.rows[7, 11] = np.nan
    flights.labels[9] = -1
    ledger, told = tmp_path / "ledger", []

    async def body() -> None:
        async with served() as server:
            replay = Replay(flights, Plan(server.url), on_answer=told.append, ledger=ledger)
            counters = await replay.run()
            by_id = {request["id"]: request for request in server.seen}
            assert len(by_id) == len(server.seen) == 300
            for i in range(300):
                request = by_id[f"flight-{i}"]
                (x,) = request["inputs"]
                assert (x["name"], x["datatype"], x["shape"]) == ("X", "FP32", [1, 13])
                row = np.array([np.nan if v is None else v for v in x["data"]], np.float32)
                assert np.array_equal(row, flights.rows[i], equal_nan=True)
                assert request["parameters"] == {"event_time_ns": int(flights.event_ns[i])}
            expected = [
                {
                    "id": f"p-flight-{i}",
                    "row": 0,
                    "value": int(flights.labels[i]),
                    "at_ns": int(flights.label_ns[i]),
                }
                for i in range(300)
                if i != 9
            ]
            assert sorted(server.labels, key=lambda label: int(label["id"][9:])) == expected
            found = counters.summary()
            assert {name: found[name] for name in ("sent", "answered", "labels_sent")} == {
                "sent": 300, "answered": 300, "labels_sent": 299,
            }  # fmt: skip
            assert not counters.failed
            assert counters.unknown == counters.reconnects == 0

    run(body)
    assert sorted(ledger.read_text().split()) == sorted(f"p-flight-{i}" for i in range(300))
    assert sorted(each.index for each in told) == list(range(300))
    assert all(each == Answered(each.index, f"p-flight-{each.index}", b"{}") for each in told)


def test_one_connection_keeps_the_order(few_flights: Flights) -> None:
    """Flights leave in the order of their event time."""

    async def body() -> None:
        async with served() as server:
            await Replay(first(few_flights, 50), Plan(server.url, connections=1)).run()
            assert [request["id"] for request in server.seen] == [f"flight-{i}" for i in range(50)]

    run(body)


def test_labels_wait_for_the_replayed_clock(few_flights: Flights) -> None:
    """No label is sent before the replayed clock has passed its time, and some are sent on the way."""
    flights = first(few_flights, 1500)

    async def body() -> None:
        async with served() as server:
            late: list[dict[str, Any]] = []
            on_the_way: list[dict[str, Any]] = []

            def told(answered: Answered) -> None:
                if answered.index == 1000:
                    replay.pause()

            def check(labels: list[dict[str, Any]]) -> None:
                # The end of the replay sends what is left at once.
                if replay.taken < 1500:
                    late.extend(label for label in labels if label["at_ns"] > replay.clock_ns)
                    on_the_way.extend(labels)
                replay.proceed()

            replay = Replay(flights, Plan(server.url, connections=2), on_answer=told)
            server.on_labels = check
            await replay.run()
            assert late == []
            assert on_the_way
            assert len(server.labels) == 1500

    run(body)


def test_labels_go_a_thousand_at_a_time(few_flights: Flights) -> None:
    """A request holds at most 1,000 labels, the earliest first."""
    # All land only after the last has left: every label is sent at the end.
    flights = few_flights._replace(label_ns=few_flights.event_ns + 10**18)

    async def body() -> None:
        async with served() as server:
            await Replay(flights, Plan(server.url)).run()
            assert [len(batch) for batch in server.batches] == [1000, 1000]
            times = [label["at_ns"] for label in server.labels]
            assert times == sorted(times)

    run(body)


def test_refusals_are_counted_and_not_sent_again(few_flights: Flights) -> None:
    """A 503 and a 400 count by status; the flight is gone, and has no label."""

    async def body() -> None:
        async with served() as server:
            statuses = {3: 503, 5: 400, 7: 503}
            server.rule = lambda path, n: 202 if path.endswith("feedback") else statuses.get(n, 200)
            counters = await Replay(first(few_flights, 20), Plan(server.url, connections=1)).run()
            assert counters.failed == {503: 2, 400: 1}
            assert (counters.sent, counters.answered, counters.labels_sent) == (20, 17, 17)
            assert len({request["id"] for request in server.seen}) == len(server.seen) == 20

    run(body)


def test_a_lost_reply_is_unknown_and_never_sent_again(few_flights: Flights) -> None:
    """The connection ends after the request was taken: counted as unknown; the next flights find a new one."""

    async def body() -> None:
        async with served() as server:
            server.rule = lambda path, n: 202 if path.endswith("feedback") else (None if n % 4 == 1 else 200)
            counters = await Replay(first(few_flights, 40), Plan(server.url, connections=3)).run()
            assert (counters.sent, counters.answered, counters.unknown) == (40, 30, 10)
            assert len({request["id"] for request in server.seen}) == len(server.seen) == 40
            assert counters.reconnects > 0

    run(body)


def test_no_reply_in_time_is_unknown(few_flights: Flights) -> None:
    """A server that never answers is not waited for without end."""

    async def body() -> None:
        async with served() as server:
            never = asyncio.Event()

            async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    await reader.readuntil(b"\r\n\r\n")
                    await never.wait()
                finally:
                    writer.close()

            server.serve = silent  # type: ignore[method-assign]
            plan = Plan(server.url, connections=2, timeout_s=0.3)
            counters = await Replay(first(few_flights, 4), plan).run()
            assert (counters.sent, counters.unknown) == (4, 4)

    run(body)


def test_refused_labels_are_sent_again_and_lost_ones_not(few_flights: Flights) -> None:
    """503 takes nothing, so the batch follows later; a reply that is lost leaves the batch unknown."""

    async def body() -> None:
        async with served() as server:
            server.rule = lambda path, n: (503 if n == 0 else 202) if path.endswith("feedback") else 200
            counters = await Replay(first(few_flights, 20), Plan(server.url)).run()
            assert (counters.labels_sent, counters.labels_failed) == (20, {})
            server.batches.clear()
            server.rule = lambda path, _: None if path.endswith("feedback") else 200
            counters = await Replay(first(few_flights, 20), Plan(server.url)).run()
            assert (counters.labels_sent, counters.labels_unknown) == (0, 20)
            assert server.labels == []
            server.rule = lambda path, _: 404 if path.endswith("feedback") else 200
            counters = await Replay(first(few_flights, 20), Plan(server.url)).run()
            assert (counters.labels_sent, counters.labels_failed) == (0, {404: 20})

    run(body)


def test_a_gateway_that_comes_late_is_waited_for(few_flights: Flights) -> None:
    """Refused connections are tried again, since nothing was taken; nothing is counted as failed."""

    async def body() -> None:
        async with served() as server:
            port = server.port
        replay = Replay(first(few_flights, 20), Plan(f"http://127.0.0.1:{port}"))
        running = asyncio.ensure_future(replay.run())
        while replay.taken < 8:
            await asyncio.sleep(0)
        assert replay.counters.sent == 0
        async with served(port):
            counters = await running
        assert (counters.sent, counters.answered, counters.unknown) == (20, 20, 0)

    run(body)


def test_nobody_there_ends_the_run(few_flights: Flights) -> None:
    """After the time for connecting the run ends and says so; nothing was sent."""

    async def body() -> None:
        async with served() as server:
            url = server.url
        replay = Replay(first(few_flights, 20), Plan(url, connect_for_s=0.05))
        with pytest.raises(Unreachable, match="nobody answers at"):
            await replay.run()
        assert replay.counters.sent == 0

    run(body)


def test_pause_and_stop(few_flights: Flights) -> None:
    """Paused, no flight is taken; after proceed it goes on; stopped, it ends with nothing in flight."""

    async def body() -> None:
        async with served() as server:
            replay = Replay(few_flights, Plan(server.url, connections=2))

            def told(answered: Answered) -> None:
                if answered.index == 20:
                    replay.pause()
                if answered.index == 100:
                    replay.stop()

            replay._on_answer = told
            running = asyncio.ensure_future(replay.run())
            while replay.counters.answered < 22:
                await asyncio.sleep(0)
            for _ in range(50):
                await asyncio.sleep(0)
            assert replay.counters.sent == replay.counters.answered == replay.taken == 22
            replay.proceed()
            counters = await running
            assert counters.sent == counters.answered == replay.taken
            assert 101 <= counters.sent <= 104
            assert counters.unknown == 0

    run(body)


def test_speed_holds_flights_back(few_flights: Flights) -> None:
    """At speed N a flight leaves no earlier than its distance from the first one, divided by N."""
    flights = first(few_flights, 12)
    span_s = float(flights.event_ns[-1] - flights.event_ns[0]) / 1e9
    speed = span_s / 0.2

    async def body() -> None:
        async with served() as server:
            left: dict[int, float] = {}
            replay = Replay(
                flights, Plan(server.url, speed=speed), on_answer=lambda a: left.update({a.index: now()})
            )
            now = time.monotonic
            began = now()
            await replay.run()
            for i, at in left.items():
                due_s = float(flights.event_ns[i] - flights.event_ns[0]) / 1e9 / speed
                assert at - began >= due_s * 0.999
            assert len(left) == 12

    run(body)
