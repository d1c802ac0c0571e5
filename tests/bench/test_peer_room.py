"""A machine without disk, files or memory left ends a run of probes: that is no product's answer."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections import namedtuple
from collections.abc import Callable

import pytest

from bench.peers.peer import Begin, Running, Unavailable
from bench.peers.probes import features, loss, new_version
from bench.peers.probes.started import Started
from bench.peers.probes.table import Seen, Table
from tests.bench.fake_peer import FakePeer, FakeRunning, Ways

Usage = namedtuple("Usage", "total used free")
SHORT = [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM]


def asked(run: Callable[[Started], Seen], peer: FakePeer | None = None) -> Table:
    """What one probe finds that does so, of a product whose page says that it has no log."""
    (probe,) = [probe for probe in features.PROBES if probe.name == "outlives kill -9"]
    return features.probe_all(
        [peer or FakePeer(name="mlserver")], lambda _: None, probes=[probe._replace(run=run)]
    )


@pytest.mark.parametrize("number", SHORT)
def test_a_machine_that_ran_short_ends_the_run(number: int) -> None:
    """No cell says no, or that it is not offered, for this machine's full disk."""

    def run(_started: Started) -> Seen:
        raise OSError(number, "short")

    with pytest.raises(OSError, match="no product's answer") as caught:
        asked(run)
    assert caught.value.errno == number


def test_another_failure_is_an_answer() -> None:
    """A product that refuses connections has answered."""

    def run(_started: Started) -> Seen:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    cell = asked(run).answer("mlserver", "outlives kill -9")
    assert cell.answer == "no" and "refused" in cell.seen


def test_what_a_probe_caught_itself_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed connection is a probe's no, but not where this machine had no file left for it."""

    def run(started: Started) -> Seen:
        def fails(*_args: object, **_named: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            patch.setattr("socket.create_connection", fails)
            started.ask(features.first_of("scale"))
        return Seen("no", "it is not answered")

    with pytest.raises(OSError, match="Too many open files"):
        asked(run)


def test_a_server_that_cannot_be_started_for_want_of_room_ends_the_run() -> None:
    """What is said of a product that does not start hides no full disk below it."""

    class Full(FakePeer):
        def begin(self, what: Begin) -> Running:
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as exc:
                raise Unavailable(self.name, f"cannot be started: {exc}") from exc

    with pytest.raises(OSError, match="No space left"):
        asked(lambda _: Seen("yes"), Full(name="mlserver"))
    with pytest.raises(OSError, match="No space left"):
        loss.measure_all([Full(Ways(log="file"))], lambda _: None, requests=10, outage_s=0.01)


@pytest.mark.parametrize("name", ["taken up without a failed request", "outlives a broken version"])
def test_a_version_that_cannot_be_placed_for_want_of_room_was_not_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a no nor a yes: what could not be copied was neither taken up nor refused."""
    monkeypatch.setattr(new_version, "_TAKES_S", 0.1)
    monkeypatch.setattr(FakeRunning, "new_version", lambda *_: fail(errno.ENOSPC))
    probes = [probe for probe in features.PROBES if probe.name == name]
    with pytest.raises(OSError, match="ran short"):
        features.probe_all([FakePeer()], lambda _: None, probes=probes)


def test_a_disk_that_is_full_ends_the_run_whatever_the_product_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that met the disk's end says it with a status of its own; a yes is a yes all the same."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 << 20, 99 << 20, 1 << 20))
    monkeypatch.setattr(loss, "SETTLE_S", 0.1)
    assert asked(lambda _: Seen("yes")).answer("mlserver", "outlives kill -9").answer == "yes"
    with pytest.raises(OSError, match="1 MiB left"):
        asked(lambda _: Seen("no", "500"))
    with pytest.raises(OSError, match="1 MiB left"):
        loss.measure_all(
            [FakePeer(Ways(log="file", loses_every=2))], lambda _: None, requests=10, outage_s=0.01
        )


def test_a_receiver_without_room_ends_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that cannot be had stands in the table; this machine's full disk does not."""
    monkeypatch.setattr(loss, "SETTLE_S", 0.1)
    peer = FakePeer(Ways(log="file"))
    for number, ends in ((errno.EADDRINUSE, False), (errno.ENOSPC, True)):
        monkeypatch.setattr(loss.FileReceiver, "start", lambda _self, number=number: fail(number))
        if ends:
            with pytest.raises(OSError, match="ran short"):
                loss.measure_all([peer], lambda _: None, requests=10, outage_s=0.01)
        else:
            (found,) = loss.measure_all([peer], lambda _: None, requests=10, outage_s=0.01)
            assert "receiver is not to be had" in found.unavailable


def fail(number: int) -> None:
    """As the kernel does."""
    raise OSError(number, "said by the kernel")
