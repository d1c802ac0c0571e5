"""Processes that are killed: who is, who is not, and what counts as coming back. Nothing is started or killed here."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from bench.peers.family import Seen as Process
from bench.peers.probes import features, killed
from bench.peers.probes.table import Row, Seen, Table, markdown

FIRST = 100


@dataclass
class Product:
    """A product's processes on a clock of its own.

    Attributes:
        spends: ticks of one request, by pid.
        kinds: by pid.
        replaced_s: after what time a kind is there again; a kind that is missing never is.
        needs: kinds of which one process must live for a request to be answered.
        dies_with: pids that end when another one does.
        works: ticks of a second, by pid, whatever is asked.
    """

    spends: dict[int, int]
    kinds: dict[int, str]
    replaced_s: dict[str, float] = field(default_factory=dict)
    needs: tuple[str, ...] = ("worker",)
    dies_with: dict[int, int] = field(default_factory=dict)
    works: dict[int, int] = field(default_factory=dict)
    named: bool = True
    now_s: float = 0.0
    killed: list[int] = field(default_factory=list)
    stopped: int = 0

    def __post_init__(self) -> None:
        self.born = {pid: number for number, pid in enumerate(self.kinds)}
        self.spent = dict.fromkeys(self.kinds, 0)
        self.coming: list[tuple[float, str]] = []
        self.url = ""
        self.home = None
        if self.named:
            self.pid = next(iter(self.kinds))

    def pids(self) -> list[int]:
        for due_s, kind in [one for one in self.coming if one[0] <= self.now_s]:
            self.coming.remove((due_s, kind))
            pid = 1 + max([FIRST, *self.born])
            self.kinds[pid], self.born[pid], self.spent[pid] = kind, 1000 + len(self.born), 0
        return sorted(self.kinds)

    def seen(self, pid: int) -> Process:
        own = self.spent[pid] + round(self.works.get(pid, 0) * self.now_s)
        return Process(pid, 1, 1, self.born[pid], own, 0, False)

    def answers(self) -> bool:
        self.now_s += 0.001
        for pid in self.pids():
            self.spent[pid] += self.spends.get(pid, 0)
        return all(kind in self.kinds.values() for kind in self.needs)

    def kill(self, pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        self.killed.append(pid)
        for one in [pid, *(other for other, with_ in self.dies_with.items() if with_ == pid)]:
            kind = self.kinds.pop(one)
            if kind in self.replaced_s:
                self.coming.append((self.now_s + self.replaced_s[kind], kind))

    def stop(self) -> None:
        self.stopped += 1

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def started(product: Product) -> Any:
    """As a probe has it in hand."""
    return SimpleNamespace(
        running=product, is_right=lambda _x: product.answers(), what=SimpleNamespace(setting=None)
    )


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask a product, and a second server of it where the first one did not come back."""

    def on(product: Product) -> None:
        monkeypatch.setattr(
            killed, "counted", lambda pids: {(p, product.born[p]): product.seen(p) for p in pids}
        )
        monkeypatch.setattr(killed, "kind_of", lambda pid: product.kinds.get(pid, "?"))
        monkeypatch.setattr(killed, "_answers_soon", lambda one, _x: one.running.answers())
        monkeypatch.setattr(killed.os, "kill", product.kill)
        clock = SimpleNamespace(monotonic=lambda: product.now_s, sleep=product.sleep)
        monkeypatch.setattr(killed, "time", clock)

    def asked(product: Product, second: Product | None = None) -> Seen:
        @contextlib.contextmanager
        def another(*_: object) -> Iterator[Any]:
            assert product.stopped, "the broken one would take processor time from the second"
            assert second is not None
            on(second)
            yield started(second)

        on(product)
        monkeypatch.setattr(killed, "another", another)
        return killed.comes_back(started(product))

    return asked


def two_workers(**more: Any) -> Product:
    """A supervisor, two workers and somebody who has hardly anything to do with it."""
    kinds = {FIRST: "service", 101: "worker", 102: "worker", 103: "idle"}
    given: dict[str, Any] = {"replaced_s": {"worker": 1.0}, **more}
    return Product({FIRST: 500, 101: 100, 102: 200, 103: 1}, kinds, **given)


def test_who_comes_back_passes(ask: Any) -> None:
    """Both workers are killed, the busier first; neither the first process, however busy, nor an idle one is."""
    product = two_workers()
    seen = ask(product)
    assert product.killed == [102, 101]
    assert (seen.answer, seen.seen.count("kill -9 of `worker`: there again after 1.0 s")) == ("yes", 2)


def test_who_is_busy_with_itself_takes_no_part(ask: Any) -> None:
    """A daemon that spends as much without a request is not killed, though it spends more than a worker."""
    product = two_workers(works={103: 1_000_000, 101: 5})
    assert ask(product).answer == "yes"
    assert product.killed == [102, 101]


def test_the_first_process_is_known_by_its_birth_too(ask: Any) -> None:
    """Where a server does not name it, it is the one that was born first, whatever pids there are."""
    product = two_workers(named=False, replaced_s={"worker": 1.0, "service": 1.0})
    product.born.update({FIRST: 9, 102: 0})
    ask(product)
    assert 102 not in product.killed and FIRST in product.killed


def test_one_that_has_a_further_process_for_a_moment_needs_no_more_than_usual(ask: Any) -> None:
    """A worker beside the usual two, that takes somebody's place, need not be there again as well."""
    product = two_workers()
    is_right = product.answers

    def answers() -> bool:
        if len(product.killed) == 1 and len(product.kinds) == 4:
            product.kinds[400], product.born[400], product.spent[400] = "worker", 400, 0
        if len(product.killed) == 2:
            product.kinds.pop(400, None)
        return is_right()

    product.answers = answers  # type: ignore[method-assign]
    assert ask(product).answer == "yes"
    assert product.killed == [102, 101]


def test_that_others_answer_is_no_coming_back(ask: Any) -> None:
    """With one of two workers left requests are answered, but nothing started the killed one again."""
    product = two_workers(replaced_s={})
    seen = ask(product, two_workers(replaced_s={}))
    assert seen.answer == "no"
    assert "left of 2 such: 1" in seen.seen
    assert product.killed == [102]


def test_who_comes_back_but_does_not_answer_fails(ask: Any) -> None:
    """A worker that is there again without right answers is not back."""
    product, second = (two_workers(dies_with={103: 101}, needs=("worker", "idle")) for _ in range(2))
    seen = ask(product, second)
    assert product.killed == [102, 101]
    assert seen.answer == "partly"
    assert "left of 2 such: 2" in seen.seen and " 0 of" in seen.seen


def test_some_of_them_is_half_of_it(ask: Any) -> None:
    """One kind comes back, the other does not: told of both, from a second server with the other end first."""

    def made() -> Product:
        kinds = {FIRST: "service", 101: "worker", 102: "queue"}
        return Product({101: 100, 102: 200}, kinds, replaced_s={"worker": 1.0}, needs=("worker", "queue"))

    product, second = made(), made()
    seen = ask(product, second)
    assert (product.killed, second.killed) == ([102], [101, 102])
    assert seen.answer == "partly"
    assert seen.seen.startswith("kill -9 of `queue`: ")
    assert "in a second server kill -9 of `worker`: there again" in seen.seen
    assert product.stopped == 1


def test_one_process_is_asked_as_well(ask: Any) -> None:
    """It is killed, and nothing answers any more; with somebody else to start it again it would pass."""
    alone = Product({FIRST: 5}, {FIRST: "worker"})
    seen = ask(alone)
    assert (seen.answer, alone.killed) == ("no", [FIRST])
    assert "left of 1 such: 0, of all: 0" in seen.seen
    assert ask(Product({FIRST: 5}, {FIRST: "worker"}, {"worker": 0.5})).answer == "yes"


def test_who_ended_with_an_earlier_one_is_not_counted(ask: Any) -> None:
    """A process that is gone was not killed: nothing is said of it, and its pid may be a stranger's."""
    product = two_workers(dies_with={101: 102})
    seen = ask(product)
    assert product.killed == [102]
    assert (seen.answer, seen.seen.count("kill -9")) == ("yes", 1)


def test_a_pid_that_came_again_is_not_killed(ask: Any) -> None:
    """Same pid, another birth: somebody else."""
    product = two_workers()
    kill = product.kill

    def killing(pid: int, number: int) -> None:
        kill(pid, number)
        if pid == 102:
            product.born[101] = 7777

    product.kill = killing  # type: ignore[method-assign]
    assert ask(product).answer == "yes"
    assert product.killed == [102]


def test_who_ends_before_it_can_be_killed_costs_nothing(ask: Any) -> None:
    """Gone between the look and the kill: not killed, not counted; and with nobody killed nothing was seen."""
    product = two_workers()

    def killing(pid: int, _number: int) -> None:
        del product.kinds[pid]
        raise ProcessLookupError

    product.kill = killing  # type: ignore[method-assign]
    assert ask(product).answer == "not seen"


def test_a_page_has_room_for_all_that_were_killed() -> None:
    """The row's evidence is not cut where other rows' is."""
    (probe,) = [probe for probe in features.PROBES if probe.run is killed.comes_back]
    text = "; ".join(f"kill -9 of `number {i}`" for i in range(20))
    for characters, is_whole in ((probe.characters, True), (240, False)):
        row = Row("g", "n", "a", {"fake": Seen("yes", text)}, characters)
        table = Table((features.Column("fake", "Fake"),), (row,))
        assert (text in markdown(table)) is is_whole
