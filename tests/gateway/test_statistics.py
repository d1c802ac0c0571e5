"""Statistics: one version's words over all workers, as Open Inference Protocol clients ask for them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from gateway import counting
from gateway import fleet as words_of
from gateway.counting import Counting
from gateway.fleet import Fleet
from gateway.statistics import BatchStatistics, Duration, version_statistics
from tests.gateway.path import Path_, until
from tests.gateway.test_counting import batch_of


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Two workers."""
    return Fleet.create(tmp_path / "fleet", 2)


def test_a_version_that_never_ran(fleet: Fleet) -> None:
    """All is zero, and no size of batch is listed."""
    found = version_statistics(fleet, 3)
    assert (found.last_inference_ms, found.inference_count, found.execution_count) == (0, 0, 0)
    assert found.success == found.fail == found.queue == Duration(0, 0)
    assert found.batches == []


def test_workers_are_summed(fleet: Fleet) -> None:
    """Requests count what they waited for, runs what they took; failed ones are apart."""
    for index, (waited, failed) in enumerate((([100, 300], False), ([50], True))):
        Counting(fleet.slot(index, 3)).run(*batch_of(waited, "primary"), 0, failed=failed)
    counting.publish()
    found = version_statistics(fleet, 3)
    assert (found.inference_count, found.execution_count) == (2, 2)
    each_ns = 6000 + 200_000 + 7000
    assert found.success == Duration(2, 2 * each_ns + 400)
    assert found.fail == Duration(1, each_ns + 50)
    assert found.queue == Duration(3, 450)
    assert found.compute_input == Duration(3, 6000)
    assert found.compute_infer == Duration(3, 600_000)
    assert found.compute_output == Duration(3, 21_000)
    assert found.cache_hit == found.cache_miss == Duration(0, 0)
    assert found.batches == [
        BatchStatistics(1, Duration(1, 2000), Duration(1, 200_000), Duration(1, 7000)),
        BatchStatistics(2, Duration(1, 4000), Duration(1, 200_000), Duration(1, 7000)),
    ]
    assert abs(found.last_inference_ms / 1000 - time.time()) < 60


def test_requests_on_the_path_are_counted(tmp_path: Path) -> None:
    """What the core answers stands in the statistics: rows, runs, one duration a request and stage."""

    async def play() -> Path_:
        path = Path_(tmp_path)
        sinks = [path.send([1, 2, 3, 4]), path.send([[1, 2, 3, 4]] * 3)]
        await until(lambda: all(sink.status for sink in sinks))
        path.close()
        return path

    path = asyncio.run(play())
    counting.publish()
    found = version_statistics(path.fleet, 0)
    assert (found.inference_count, found.success.count, found.fail.count) == (4, 2, 0)
    assert found.execution_count == len(path.session.runs)
    for stage in (found.queue, found.compute_input, found.compute_infer, found.compute_output):
        assert stage.count == 2
        assert 0 < stage.ns < found.success.ns
    assert path.fleet.slot(0, 0)[words_of.ROWS] == 4
