"""Paired rounds: every side once a round, ratios within a round, and the guard."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.paired import Sample, Watch, busy_row, ratio, rounds


def sample(us: float, foreign: float = 0.0) -> Sample:
    """A load that took so much of the server."""
    return Sample(server_us=us, foreign_cpus=foreign)


def test_each_side_goes_once_a_round_and_none_is_always_first() -> None:
    """The order turns and its direction changes; samples keep their names."""
    ran: list[str] = []
    sides = {name: (lambda name=name: (ran.append(name), sample(1.0))[1]) for name in "abc"}
    found = rounds(sides, 6)
    orders = ["".join(ran[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert {order[0] for order in orders} == {order[-1] for order in orders} == {"a", "b", "c"}
    assert all(list(pair) == ["a", "b", "c"] for pair in found)


def test_a_drift_of_the_machine_is_not_in_the_ratio() -> None:
    """Both sides get three times slower within the run: the ratio of each round stays."""
    pairs = [{"ours": sample(2.0 * slow), "theirs": sample(1.0 * slow)} for slow in (1, 1.5, 2, 2.5, 3)]
    found = ratio(pairs, lambda pair: pair["ours"].server_us, lambda pair: pair["theirs"].server_us)
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


def test_a_busy_machine_gives_no_figure() -> None:
    """What others took in the worse half of each round counts, and above 0.20 the goal is missed."""
    quiet = [{"a": sample(1, 0.1), "b": sample(1, 0.2)}] * 3
    busy = [{"a": sample(1, 0.1), "b": sample(1, 0.21)}] * 3
    assert busy_row(quiet).met is True
    assert busy_row(busy).met is False


def test_processor_time_goes_to_who_took_it() -> None:
    """A watched child's time is its role's; children that ended and this process are nobody else."""
    burn = "import time\nt = time.process_time()\nwhile time.process_time() - t < {}: pass\n"
    watched = subprocess.Popen(
        [sys.executable, "-c", burn.format(0.2) + "print('x', flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    watch = Watch({"server": [watched.pid]})
    assert watched.stdout.readline() == b"x\n"
    subprocess.run([sys.executable, "-c", burn.format(0.8)], check=True)
    spent, foreign, wall_s = watch.stop()
    watched.communicate(b"\n")
    assert 0.15 <= spent["server"] <= 0.8, "its own, and the start of a Python"
    assert foreign * wall_s >= 0
    assert wall_s <= time.monotonic()
