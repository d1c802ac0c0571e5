"""What a gateway must hold before it starts: its state directory, its addresses, its shared memory.

Called by the supervisor alone, before the first child. Each refusal is one line for people that names what
is in the way and what to do. Standard library only, as the supervisor is.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from pathlib import Path
from typing import NamedTuple

from gateway.fleet import Fleet
from gateway.process import Context

STATE_FORMAT = 1
BACKLOG = 2048
SPARE_WORKERS = 1
"""Blocks of shared memory beyond those of the workers: where a successor starts while its predecessor serves."""
REDACTION_KEY = "redaction.key"
"""In the state directory. Another key makes other hashes of equal values; its id stands with each."""
ROUTING_KEY = "routing.key"
"""In the state directory. What salts of sticky routing are worked out from; another key moves sticky clients."""


class StartRefused(Exception):
    """The gateway cannot start; the message is the one line that people see. Exit code 2."""


class Held(NamedTuple):
    """What the supervisor holds as long as the gateway lives."""

    lock_fd: int
    data: socket.socket
    admin: socket.socket
    fleet: Fleet

    @property
    def fds(self) -> tuple[int, int, int]:
        """Descriptors that another image of the supervisor must inherit."""
        return self.lock_fd, self.data.fileno(), self.admin.fileno()

    def close(self) -> None:
        """Give back addresses and lock; the process's end does the same."""
        self.data.close()
        self.admin.close()
        os.close(self.lock_fd)


def claim(context: Context) -> tuple[Held, Context]:
    """Everything that a gateway must hold, and the context completed with where it is.

    Raises:
        StartRefused: the first of it that is not to be had.
    """
    config = json.loads(context.config)
    state_dir = context.state_path
    if not Path(context.models).is_dir():
        msg = (
            f"model repository {Path(context.models).name!r} is not a directory; make it and put"
            " a model at NAME/1/model.onnx"
        )
        raise StartRefused(msg)
    gateway_id, lock_fd = prepare_state(state_dir)
    data = listen(config["data"]["host"], config["data"]["port"], "data")
    admin = listen(config["admin"]["host"], config["admin"]["port"], "admin")
    memory = config["audit"]["ring"] == "memory"
    ring_dir = Path(f"/dev/shm/tidegate-{gateway_id}") if memory else state_dir / "ring"  # noqa: S108
    fleet, fleet_path = make_memory(ring_dir, int(config["workers"]))
    completed = context.with_(
        gateway_id=gateway_id,
        ring_dir=str(ring_dir),
        fleet_path=str(fleet_path),
        data_fd=data.fileno(),
        admin_fd=admin.fileno(),
        data_url=url_of(data),
        admin_url=url_of(admin, tls=bool(config["admin"].get("tls"))),
        supervisor_pid=os.getpid(),
    )
    return Held(lock_fd, data, admin, fleet), completed


def resume(context: Context, lock_fd: int) -> tuple[Held, Context]:
    """The same from an image of the supervisor that this one took the place of: nothing is claimed anew.

    Raises:
        ValueError: the fleet file is of another format, which the check before the upgrade excludes.
        StartRefused: a key in the state directory is none.
    """
    # Of one that knew fewer keys.
    ensure_keys(context.state_path)
    data, admin = socket.socket(fileno=context.data_fd), socket.socket(fileno=context.admin_fd)
    return Held(lock_fd, data, admin, Fleet.open(Path(context.fleet_path))), context


def prepare_state(state_dir: Path) -> tuple[str, int]:
    """Make and lock the state directory; returns the gateway's id and the lock's descriptor.

    Raises:
        StartRefused: held by another gateway, written by a newer one, or not writable.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        msg = f"state directory {state_dir.name!r} cannot be used: {exc.strerror}"
        raise StartRefused(msg) from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode().strip() or "unknown"
        os.close(lock)
        msg = (
            f"state directory {state_dir.name!r} is in use by the gateway with pid {holder};"
            " stop it, or give this one --state-dir of its own"
        )
        raise StartRefused(msg) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    try:
        _check_format(state_dir / "format")
        ensure_keys(state_dir)
        return _gateway_id(state_dir / "gateway_id"), lock
    except OSError as exc:
        msg = f"state directory {state_dir.name!r} cannot be used: {exc.strerror}"
        raise StartRefused(msg) from exc


def _check_format(path: Path) -> None:
    try:
        found = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        _write_once(path, str(STATE_FORMAT))
        return
    if not found.isdigit() or int(found) > STATE_FORMAT:
        msg = (
            f"the state directory has format {found!r}, this Tidegate knows {STATE_FORMAT}:"
            " use a newer Tidegate or another --state-dir"
        )
        raise StartRefused(msg)


def _gateway_id(path: Path) -> str:
    try:
        found = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        made = secrets.token_hex(8)
        _write_once(path, made)
        return made
    if len(found) != 16 or not set(found) <= set("0123456789abcdef"):
        # Every id in the log derives from it: guessing a new one would begin another gateway's log.
        msg = f"gateway_id in the state directory is {found!r}, expected 16 hex digits: restore that file"
        raise StartRefused(msg)
    return found


def ensure_keys(state_dir: Path) -> None:
    """The secrets of this host: there before anything is recorded or routed, or refused.

    Raises:
        StartRefused: one that is there is no key.
        OSError: one that is not there cannot be written.
    """
    for name in (REDACTION_KEY, ROUTING_KEY):
        _ensure_key(state_dir / name)


def _ensure_key(path: Path) -> None:
    try:
        found = path.read_text().strip()
    except FileNotFoundError:
        _write_once(path, secrets.token_hex(32))
        return
    except ValueError:
        found = ""
    if len(found) != 64 or not set(found) <= set("0123456789abcdef"):
        # Another key would make other hashes of equal values, and a short one could be guessed.
        msg = f"{path.name} in the state directory is not 64 hex digits: restore that file"
        raise StartRefused(msg)


def _write_once(path: Path, text: str) -> None:
    """Whole or not at all, also after power loss."""
    temporary = path.with_name(path.name + ".new")
    # A rest of an earlier try may have other rights.
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    left = f"{text}\n".encode()
    while left:
        left = left[os.write(fd, left) :]
    os.fsync(fd)
    os.close(fd)
    temporary.rename(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(fd)
    os.close(fd)


def make_memory(ring_dir: Path, workers: int) -> tuple[Fleet, Path]:
    """The directory of the rings, and a fresh fleet file in it.

    Raises:
        StartRefused: no room there, or the directory is another user's.
    """
    how = 'give the container more shared memory (--shm-size=256m) or set audit.ring = "state_dir"'
    try:
        ring_dir.mkdir(mode=0o700, exist_ok=True)
        if ring_dir.stat().st_uid != os.geteuid():
            msg = (
                f"ring directory {ring_dir.name!r} belongs to another user: remove it, or serve as that user"
            )
            raise StartRefused(msg)
        # Made anew under the same name, so that a straggler of an earlier life keeps its own.
        path = ring_dir / "fleet"
        path.unlink(missing_ok=True)
        return Fleet.create(path, workers, SPARE_WORKERS), path
    except OSError as exc:
        size_bytes = Fleet.size_bytes(workers + SPARE_WORKERS)
        msg = f"shared memory of {size_bytes >> 10} KiB cannot be made: {exc.strerror}; {how}"
        raise StartRefused(msg) from exc


def listen(host: str, port: int, what: str) -> socket.socket:
    """A listening socket that children inherit.

    Raises:
        StartRefused: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        flag = "--port" if what == "data" else "--admin-port"
        msg = f"{what} address {host}:{port}: {exc.strerror}; choose another with {flag}"
        raise StartRefused(msg) from exc
    sock.setblocking(False)
    sock.set_inheritable(True)
    return sock


def url_of(sock: socket.socket, *, tls: bool = False) -> str:
    """The base URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
