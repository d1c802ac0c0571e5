"""The watchdog: runs end at their deadline, also those that block the loop or do not heed."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from gateway.watchdog import GRACE_NS, LATE_NS, POLL_NS, Watchdog, Watched
from tests.gateway.path import Path_, SumSession, until


def options() -> SimpleNamespace:
    return SimpleNamespace(terminate=False)


def test_a_run_is_ended_at_its_deadline_not_before() -> None:
    """The next look is due at the earliest deadline; what has ended is left alone."""
    dog = Watchdog()
    hung: list[int] = []
    runs = [Watched(options(), deadline, lambda n=deadline: hung.append(n)) for deadline in (100, 200, 300)]
    for run in runs:
        dog.watch(run)
    assert dog.look(50) == 100
    assert [run.options.terminate for run in runs] == [False] * 3
    dog.forget(runs[1])
    dog.look(250)
    assert [run.options.terminate for run in runs] == [True, False, False]
    assert dog.terminated == 1
    assert hung == []


def test_a_run_that_does_not_heed_is_reported_once() -> None:
    """After the grace it is reported as hung, once, and no longer watched."""
    dog = Watchdog()
    hung: list[int] = []
    dog.watch(Watched(options(), 100, lambda: hung.append(1)))
    for now_ns in (100, 100 + GRACE_NS - 1, 100 + GRACE_NS, 100 + 2 * GRACE_NS):
        dog.look(now_ns)
    assert hung == [1]
    assert dog.terminated == 1


def test_its_requests_are_answered_a_moment_after_its_deadline() -> None:
    """Once, and only where it goes on: before it is taken for hung, and not where it ended in between."""
    dog = Watchdog()
    told: list[str] = []
    runs = [
        Watched(options(), 100, lambda: told.append("hung"), lambda: told.append("late")) for _ in range(2)
    ]
    for run in runs:
        dog.watch(run)
    assert dog.look(100) == 100 + LATE_NS
    dog.forget(runs[1])
    dog.look(100 + LATE_NS - 1)
    assert told == []
    assert dog.look(100 + LATE_NS) == min(100 + LATE_NS + POLL_NS, 100 + GRACE_NS)
    dog.look(100 + 2 * LATE_NS)
    assert told == ["late"]
    dog.look(100 + GRACE_NS)
    assert told == ["late", "hung"]


def test_the_run_on_the_loop_is_ended_too() -> None:
    """It is found by the regular look; the options of a run that has ended are not touched."""
    dog = Watchdog()
    first = options()
    dog.inline = (first, 100, "m", "1")
    assert dog.look(99) == 99 + POLL_NS
    assert not first.terminate
    dog.inline = None
    dog.look(200)
    assert not first.terminate
    dog.inline = (first, 100, "m", "1")
    dog.look(200)
    assert first.terminate


class Endless(SumSession):
    """Thought to be cheap; runs until it is told to end."""

    def run(self, feeds, names=None, options=None):
        self.threads = [*getattr(self, "threads", []), threading.current_thread().name]
        if (feeds["X"] == 13).any():
            while not options.terminate:
                time.sleep(0.001)
            msg = "terminated"
            raise RuntimeError(msg)
        return super().run(feeds, names, options)


def test_a_run_that_blocks_the_loop_is_ended_and_its_version_demoted(tmp_path: Path) -> None:
    """The loop is what is blocked: the thread ends the run; from then on the version's runs go on lanes."""

    async def main() -> None:
        path = Path_(tmp_path, session=Endless())
        sink = path.send([13, 0, 0, 0], timeout_ms=400)
        await until(lambda: sink.status)
        assert (sink.status, sink.body["code"]) == (503, "deadline_exceeded")
        after = path.send([1, 0, 0, 0])
        await until(lambda: after.status)
        assert after.body["outputs"][0]["data"] == [1]
        assert path.session.threads == ["MainThread", "lane-0"]
        path.close()

    asyncio.run(main())


def test_a_version_whose_run_cost_the_loop_too_much_is_demoted(tmp_path: Path) -> None:
    """A run of several times what the loop bears is the last one there, though it ended well and in time."""

    class Dear(SumSession):
        def run(self, feeds, names=None, options=None):
            self.threads = [*getattr(self, "threads", []), threading.current_thread().name]
            until_ns = time.thread_time_ns() + 10_000_000
            while time.thread_time_ns() < until_ns:
                pass
            return super().run(feeds, names, options)

    async def main() -> None:
        path = Path_(tmp_path, session=Dear(), timed=True)
        for _ in range(2):
            sink = path.send([1, 0, 0, 0], timeout_ms=30_000)
            await until(lambda sink=sink: sink.status)
            assert sink.status == 200
        assert path.session.threads == ["MainThread", "lane-0"]
        path.close()

    asyncio.run(main())


def test_a_hung_run_is_answered_and_its_lane_replaced(tmp_path: Path) -> None:
    """A run that heeds nothing: its client gets a 503, others are served, and when it ends after all nothing breaks."""

    class Deaf(SumSession):
        def __init__(self) -> None:
            super().__init__()
            self.inline_allowed = False
            self.release = threading.Event()

        def run(self, feeds, names=None, options=None):
            if (feeds["X"] == 13).any():
                assert self.release.wait(60)
            return super().run(feeds, names, options)

    async def main() -> None:
        path = Path_(tmp_path, session=Deaf())
        version = path.models.get("sum").version("1")
        stuck = path.send([13, 0, 0, 0], timeout_ms=300)
        await until(lambda: stuck.status)
        assert (stuck.status, stuck.body["code"]) == (503, "deadline_exceeded")
        assert version.hung == 0, "nobody waits for it any longer, long before it counts as hung"
        await until(lambda: version.hung)
        assert (version.hung, path.core.runs.lanes.given_up) == (1, 1)
        served = path.send([1, 0, 0, 0])
        await until(lambda: served.status)
        assert served.status == 200
        path.session.release.set()
        await until(lambda: version.hung == 0)
        assert (path.core.runs.lanes.given_up, path.core.inflight) == (0, 0)
        again = path.send([2, 0, 0, 0])
        await until(lambda: again.status)
        assert sorted(e.status for e in path.predictions()) == [200, 200, 503]
        path.close()

    asyncio.run(main())


def test_a_version_whose_runs_hang_gets_no_more_of_them(tmp_path: Path) -> None:
    """Three runs that do not end: further requests are refused at once, with the reason."""

    async def main() -> None:
        session = SumSession()
        session.inline_allowed = False
        path = Path_(tmp_path, session=session)
        path.models.get("sum").version("1").hung = 3
        sink = path.send([1, 0, 0, 0])
        assert (sink.status, sink.body["code"]) == (503, "model_not_ready")
        assert "do not end" in sink.body["error"]
        path.close()

    asyncio.run(main())
