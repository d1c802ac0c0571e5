"""The loss probe counts right: what is lost, what came twice, and what cannot be asked."""

from __future__ import annotations

import asyncio
import errno
import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bench.kafka import KafkaAbsent
from bench.peers.adapters import PEERS
from bench.peers.probes import loss, receivers
from bench.peers.probes.loss import Loss, count, markdown, measure_all
from bench.peers.probes.marks import marked
from bench.peers.probes.receivers import HttpReceiver, KafkaReceiver
from tests.bench.fake_peer import FakePeer, Ways

REQUESTS, OUTAGE_S = 60, 0.9
ALL_S = 60.0


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come is not waited for."""
    monkeypatch.setattr(loss, "SETTLE_S", 1.2)


@pytest.fixture
def fake() -> Iterator[FakePeer]:
    """A product without fault."""
    peer = FakePeer()
    yield peer


def measured(peer: FakePeer) -> Loss:
    """One product, few requests."""
    (found,) = measure_all([peer], lambda _: None, requests=REQUESTS, outage_s=OUTAGE_S)
    return found


def test_what_is_counted() -> None:
    """Arrived of the answered, repeats beyond the first, and records of what nobody was answered."""
    assert count({1, 2, 3, 4}, [1, 2, 2, 2, 9, 9]) == (2, 3, 1)
    assert count(set(), []) == (0, 0, 0)


class Stepwise(HttpReceiver):
    """It is killed when so many records have come, and there again when so many have been dropped, however long that
    takes."""

    before, dropped = 7, 30

    def __init__(self, directory: Path, fake: FakePeer) -> None:
        super().__init__(directory)
        self._fake = fake
        self.gone, self.back = threading.Event(), threading.Event()
        fake.ways.before_record = self.step

    def step(self, number: int) -> None:
        """Of the product's log."""
        if number == self.before:
            assert self.gone.wait(ALL_S)
        if number == self.before + self.dropped:
            assert self.back.wait(ALL_S)

    def kill9(self) -> None:
        """When enough has come."""
        self._await(self.before)
        super().kill9()
        self.gone.set()

    def start(self) -> None:
        """Again, when enough is lost."""
        if self.gone.is_set():
            self._await(self.before + self.dropped)
        super().start()
        if self.gone.is_set():
            self.back.set()

    def stop(self) -> None:
        """Without waiting for anything."""
        super().kill9()

    def _await(self, forwarded: int) -> None:
        deadline = time.monotonic() + ALL_S
        while self._fake.running[-1].forwarded < forwarded and time.monotonic() < deadline:
            time.sleep(0.01)


def test_records_that_are_dropped_meanwhile_are_lost(fake: FakePeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is sent once loses what it sends while nobody takes it, and nothing of before and after."""
    fake.ways.log = "http"
    monkeypatch.setitem(loss._KINDS, "http", lambda directory: Stepwise(directory, fake))
    found = measured(fake)
    assert (found.sent, found.answered) == (REQUESTS, REQUESTS)
    assert (found.lost, found.arrived) == (Stepwise.dropped, REQUESTS - Stepwise.dropped)
    assert found.was_killed


def test_a_receiver_that_does_not_come_back_leaves_no_senders(
    fake: FakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sends into what is measured next; the product stays in the table with why."""

    class Gone(HttpReceiver):
        starts = 0

        def start(self) -> None:
            self.starts += 1
            if self.starts > 1:
                raise OSError(errno.EADDRINUSE, "its port is somebody else's")
            super().start()

    fake.ways.log = "http"
    monkeypatch.setitem(loss._KINDS, "http", Gone)
    # All but a few requests would be due in an hour.
    monkeypatch.setattr(loss, "BEFORE_SHARE", 1e-5)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    (found,) = measure_all([fake], lambda _: None, requests=10_000, outage_s=3600.0)
    assert "somebody else's" in found.unavailable
    assert [one.name for one in threading.enumerate() if one.name.startswith(loss._SENDER)] == []


def test_records_that_are_kept_meanwhile_arrive(fake: FakePeer) -> None:
    """A log that is sent again until it is taken loses nothing."""
    fake.ways.log = "http-kept"
    found = measured(fake)
    assert (found.answered, found.arrived, found.lost) == (REQUESTS, REQUESTS, 0)


def test_a_hole_in_a_file_is_found(fake: FakePeer) -> None:
    """Every tenth prediction is not written: a tenth is lost, though there was nothing to kill."""
    fake.ways.log, fake.ways.loses_every = "file", 10
    found = measured(fake)
    assert (found.answered, found.lost, found.was_killed) == (REQUESTS, REQUESTS // 10, False)


def test_who_logs_nothing_is_said_so(fake: FakePeer) -> None:
    """Without a log nothing is started, and its page is named where one is known."""
    fake.name = "mlserver"
    found = measured(fake)
    assert fake.running == []
    assert found.sent == 0
    assert found.source is not None
    assert "https://" in markdown([found])


def test_who_cannot_be_started_stays_in_the_table(fake: FakePeer) -> None:
    """With the last lines of what it said."""
    fake.ways = Ways(log="file", does_not_start_with="scale")
    found = measured(fake)
    assert "ended with status 1" in found.unavailable
    assert "ModelError: no" in markdown([found])


def test_a_receiver_keeps_what_it_had_over_a_kill(tmp_path: Path) -> None:
    """Killed with -9 and started again, it has the same address and the records before."""
    receiver = HttpReceiver(tmp_path)
    bodies = [b"[100001.0, 200001.0]", b"[100002.0, 200002.0]"]
    try:
        for body in bodies:
            receiver.start()
            parts = urlsplit(receiver.address or "")
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
            connection.request("POST", "/any", body)
            assert connection.getresponse().read() == b"{}"
            connection.close()
            receiver.kill9()
            with pytest.raises(ConnectionRefusedError):
                connection.request("POST", "/any", body)
            connection.close()
        assert receiver.arrived() == [1, 2]
    finally:
        receiver.stop()


async def _produce(bootstrap: str, numbers: list[int]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("predictions", 3, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    for number in numbers:
        await producer.send_and_wait("predictions", b"x" + marked([number]).tobytes(), partition=number % 3)
    await producer.stop()


def test_a_broker_is_read_back_over_a_kill(kafka_jars: Path, tmp_path: Path) -> None:
    """What was acknowledged before kill -9 is read after it, from every partition, each record once."""
    receiver = KafkaReceiver(tmp_path / "broker")
    receiver.start()
    try:
        assert receiver.arrived() == []
        asyncio.run(_produce(str(receiver.address), [3, 1, 4, 1, 5]))
        receiver.kill9()
        receiver.start()
        assert sorted(receiver.arrived()) == [1, 1, 3, 4, 5]
    finally:
        receiver.kill9()


def test_a_broker_is_guarded_before_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes up to a minute to answer, and must not outlive the bench in that time; one that never does is ended."""
    seen: list[tuple[int, int]] = []

    class Starting(receivers._GuardedBroker):
        def _java(self, *_: str) -> list[str]:
            return ["sleep", "600"]

        def _await_ready(self) -> None:
            assert self.guard is not None and self.pid is not None
            assert is_alive(self.guard.pid) and is_alive(self.pid)
            seen.append((self.guard.pid, self.pid))
            raise TimeoutError("it does not answer")

    monkeypatch.setattr("bench.kafka.jars", lambda _version: tmp_path)
    monkeypatch.setattr(receivers, "_GuardedBroker", Starting)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").touch()
    receiver = KafkaReceiver(tmp_path)
    with pytest.raises(TimeoutError, match="does not answer"):
        receiver.start()
    assert len(seen) == 1
    assert not [pid for pid in seen[0] if is_alive(pid)]


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.prove
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_what_a_real_product_loses_is_counted(peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 requests, ten seconds without the receiver: of ours nothing is lost; of each, all is accounted for."""
    monkeypatch.setattr(loss, "SETTLE_S", 20.0)
    try:
        (found,) = measure_all([peer], print, requests=1000, outage_s=10)
    except KafkaAbsent as exc:
        pytest.skip(f"kafka: {exc}")
    if found.unavailable:
        pytest.skip(found.unavailable)
    assert found.arrived + found.lost == found.answered <= found.sent
    if peer.name == "tidegate":
        assert (found.answered, found.lost, found.was_killed) == (1000, 0, True)
