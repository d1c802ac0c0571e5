"""A database that cannot be read is set aside, said once, and replaced; one that cannot be opened is left alone."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import msgspec
import pytest

from gateway.audit.feed import Delivery, Positions
from gateway.audit.spool_feed import SpoolFeed
from shadow.bundles import Bundles
from shadow.sidecar import Parts, Sidecar
from shadow.state import Settings
from shadow.store import FORMAT, Saved, Store, open_store, set_aside
from tests.gateway.audit.sim import GATEWAY_ID, Log
from tests.shadow.story import FakeActor


def _tables(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE saved (other)")
    db.commit()
    db.close()


def _saved(path: Path, content: bytes) -> None:
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute("INSERT INTO saved VALUES (1, ?)", (content,))
    db.commit()
    db.close()


SPOIL = {
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "a header and garbage": lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000),
    "other tables": _tables,
    "other content": lambda path: _saved(path, b"\xc1"),
    "of another shape": lambda path: _saved(path, msgspec.msgpack.encode({"state": 3})),
    "of a later format": lambda path: _saved(path, msgspec.msgpack.encode(Saved(format=FORMAT + 1))),
}


@pytest.mark.parametrize("what", SPOIL)
def test_what_cannot_be_read_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """The file stays as it was under another name, an empty database takes its place, one line says so."""
    path = tmp_path / "state.db"
    SPOIL[what](path)
    content = path.read_bytes()
    (tmp_path / "state.db.broken-1").write_bytes(b"an earlier one")
    with caplog.at_level(logging.WARNING):
        store = open_store(path)
    assert store.saved == Saved()
    store.commit()
    store.close()
    assert [aside.read_bytes() for aside in tmp_path.glob("state.db.broken-*")] == [content]
    assert [record.getMessage() for record in caplog.records] == ["state_unreadable"]
    open_store(path).close()
    assert len(caplog.records) == 1


def test_a_journal_of_the_broken_file_goes_with_it(tmp_path: Path) -> None:
    """Rolled back into the new file it would break that too."""
    path = tmp_path / "state.db"
    path.write_bytes(b"garbage" * 1000)
    (tmp_path / "state.db-journal").write_bytes(b"journal")
    open_store(path).close()
    assert not (tmp_path / "state.db-journal").exists()


def test_what_cannot_be_opened_is_left_alone(tmp_path: Path) -> None:
    """That is no fault of what it holds."""
    path = tmp_path / "state.db"
    path.mkdir()
    with pytest.raises(sqlite3.OperationalError):
        open_store(path)
    assert path.is_dir()


def test_a_full_disk_is_no_reason_to_set_it_aside(tmp_path: Path) -> None:
    """Errors that come from elsewhere leave the file where it is."""
    path = tmp_path / "state.db"
    store = Store(path)
    store._db.execute("PRAGMA max_page_count = 1")
    store.saved.cut = {f"{n:025}": n for n in range(10_000)}
    with pytest.raises(sqlite3.Error) as caught:
        store.commit()
    store.close()
    assert not set_aside(path, caught.value)
    assert path.exists()


class _Feed(SpoolFeed):
    closed = False

    def read(self, max_events: int, wait_ms: int) -> Delivery:
        return Delivery([], [])

    def close(self) -> None:
        self.closed = True


def test_a_sidecar_closes_its_feed(tmp_path: Path) -> None:
    """Kafka's consumer has connections and a loop of its own."""
    log = Log(tmp_path / "state")
    feeds: list[_Feed] = []

    def made(positions: Positions) -> _Feed:
        feeds.append(_Feed(log.spool, positions))
        return feeds[-1]

    parts = Parts(
        gateway_id=GATEWAY_ID,
        writer=log.owner("sidecar", 1 << 20),
        store=Store(),
        bundles=Bundles(tmp_path),
        actor=FakeActor(),
        feed=made,
        settings=Settings(),
        tick_s=1.0,
    )
    Sidecar(parts).close()
    assert [feed.closed for feed in feeds] == [True]
