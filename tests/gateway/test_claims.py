"""What a gateway must hold before it starts, and how it refuses."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import claims
from gateway.claims import StartRefused, listen, make_memory, prepare_state, url_of
from gateway.redaction import read_key


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A state directory that this process holds, and its gateway's id."""
    gateway_id, lock = prepare_state(tmp_path / "state")
    yield tmp_path / "state", gateway_id
    os.close(lock)


def test_state_directory_is_private_and_complete(locked: tuple[Path, str]) -> None:
    """A new state directory is 0700 and holds format, id and the holder's pid, all 0600."""
    state, gateway_id = locked
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert (state / "format").read_text() == f"{claims.STATE_FORMAT}\n"
    assert (state / "gateway_id").read_text().strip() == gateway_id
    assert len(bytes.fromhex(gateway_id)) == 8
    assert (state / "lock").read_text() == f"{os.getpid()}\n"
    assert {stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()} == {0o600}


def test_id_is_made_once(tmp_path: Path) -> None:
    """The next start finds the same gateway."""
    found = []
    for _ in range(2):
        gateway_id, lock = prepare_state(tmp_path)
        os.close(lock)
        found.append(gateway_id)
    assert found[0] == found[1]


def test_the_key_of_hashes_is_made_once(locked: tuple[Path, str], tmp_path: Path) -> None:
    """Equal values hash alike for as long as the state directory lives; every worker reads the same."""
    first = read_key(locked[0])
    assert len(first) == 32
    assert read_key(locked[0]) == first
    _, lock = prepare_state(tmp_path / "other")
    os.close(lock)
    assert read_key(tmp_path / "other") != first


@pytest.mark.parametrize("name", [claims.REDACTION_KEY, claims.ROUTING_KEY])
@pytest.mark.parametrize("found", [b"", b"ab\n", b"0" * 63, b"g" * 64, b"\xff\xfe", b"00" * 35])
def test_a_key_that_is_none_refuses_the_start(tmp_path: Path, found: bytes, name: str) -> None:
    """A short one could be guessed, an empty one would be no key at all, and another would hash otherwise."""
    (tmp_path / name).write_bytes(found)
    with pytest.raises(StartRefused, match=f"{name} in the state directory is not 64 hex digits: restore"):
        prepare_state(tmp_path)
    assert (tmp_path / name).read_bytes() == found


def test_second_gateway_names_the_holder(locked: tuple[Path, str]) -> None:
    """A held state directory refuses with one line that names the holder's pid, and stays held."""
    for _ in range(2):
        with pytest.raises(StartRefused, match=f"in use by the gateway with pid {os.getpid()};") as refused:
            prepare_state(locked[0])
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("found", ["2", "newest", "999"])
def test_newer_format_is_refused(tmp_path: Path, found: str) -> None:
    """State of a newer Tidegate is left alone."""
    (tmp_path / "format").write_text(found)
    with pytest.raises(StartRefused, match=f"has format '{found}', this Tidegate knows 1"):
        prepare_state(tmp_path)
    assert not (tmp_path / "gateway_id").exists()


@pytest.mark.parametrize(
    "found", [b"", b"0123", b"0123456789ABCDEF", b"../../../../etc/x", b"\xff\xfe\0\0" * 4]
)
def test_damaged_id_is_refused(tmp_path: Path, found: bytes) -> None:
    """A gateway_id that is not one is not replaced by a guess: the log's ids derive from it."""
    (tmp_path / "gateway_id").write_bytes(found)
    with pytest.raises(StartRefused, match="expected 16 hex digits"):
        prepare_state(tmp_path)
    assert (tmp_path / "gateway_id").read_bytes() == found


def test_a_damaged_format_is_refused(tmp_path: Path) -> None:
    """Bytes that are no text are as unknown as a newer format."""
    (tmp_path / "format").write_bytes(b"\xff\xfe")
    with pytest.raises(StartRefused, match="has format"):
        prepare_state(tmp_path)


def test_state_directory_that_is_a_file(tmp_path: Path) -> None:
    """What cannot be a directory is one line without a path of the machine."""
    (tmp_path / "state").write_text("")
    with pytest.raises(StartRefused, match="state directory 'state' cannot be used") as refused:
        prepare_state(tmp_path / "state")
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(("what", "flag"), [("data", "--port"), ("admin", "--admin-port")])
def test_port_in_use_names_address_and_flag(what: str, flag: str) -> None:
    """A taken port is one line that names host:port and the flag."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartRefused, match=f"{what} address 127.0.0.1:{port}: .*{flag}"):
            listen("127.0.0.1", port, what)


def test_port_0_takes_a_free_one() -> None:
    """The socket listens, is inheritable, and its URL names the port that was chosen."""
    with listen("127.0.0.1", 0, "data") as sock:
        port = sock.getsockname()[1]
        assert url_of(sock) == f"http://127.0.0.1:{port}"
        assert sock.get_inheritable()
        socket.create_connection(("127.0.0.1", port)).close()


def test_memory_is_fresh_and_private(tmp_path: Path) -> None:
    """Each start gets a new fleet file; one still mapped by a straggler of before is not touched."""
    before, path = make_memory(tmp_path / "ring", 1)
    before.worker(0)[0] = 4711
    after, same = make_memory(tmp_path / "ring", 2)
    assert (path, after.wanted, after.workers, after.worker(0)[0]) == (same, 2, 3, 0)
    assert before.worker(0)[0] == 4711
    assert stat.S_IMODE((tmp_path / "ring").stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_foreign_ring_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can lay a directory in shared memory for us to write predictions into."""
    (tmp_path / "ring").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "ring").stat().st_uid + 1)
    with pytest.raises(StartRefused, match="belongs to another user"):
        make_memory(tmp_path / "ring", 1)


def test_no_shared_memory_says_what_to_do(tmp_path: Path) -> None:
    """Without room, or without the place, the line says how to get some."""
    with pytest.raises(StartRefused, match=r"--shm-size=256m.*audit\.ring"):
        make_memory(tmp_path / "missing" / "ring", 1)
