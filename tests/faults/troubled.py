"""A gateway on a disk of a few MiB that can be filled, made read-only, taken away; seen from the client's side.

Two models: `lax` goes on unlogged (`degrade`), `strict` does not (`fail`). Needs root, for a tmpfs of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.models import write_mlp
from bench.serving import Gateway, Reply, call
from gateway.audit.event import Control
from gateway.audit.spool import epochs, segments
from gateway.audit.spool_feed import SpoolFeed
from gateway.audit.verify import status, verify
from tests.faults.syscalls import tracer

DISK_BYTES = 32 * 1024**2
"""Its reserve is a sixteenth: 2 MiB."""
SPOOL_BYTES = 8 * 1024**2
RING_BYTES = 256 * 1024
ROWS = 150
"""So many rows are a record of about 19 KB: a dozen fill a ring."""
SETTINGS = (
    'kafka={"bootstrap_servers": "127.0.0.1:1"}',
    f"audit.max_bytes={SPOOL_BYTES}",
    f"audit.ring_bytes={RING_BYTES}",
    "audit.segment_bytes=65536",
    "sidecar.enabled=false",
)


class Answer(NamedTuple):
    """What a client sees."""

    status: int
    code: str | None
    audit: str | None
    id: str | None
    ms: float


def absent(why: str) -> None:
    """Skip, or fail where everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"required in CI: {why}")
    pytest.skip(why)


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int = DISK_BYTES) -> Iterator[Path]:
    """A tmpfs of a few MiB, mounted for as long as it is used."""
    path.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        absent("a full disk needs root and mount(8), for a tmpfs of its own")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tidegate-test", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        absent(f"no tmpfs of its own: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


class Troubled:
    """The gateway, its disk, and what can befall them."""

    def __init__(self, gateway: Gateway, disk: Path) -> None:
        self.gateway = gateway
        self.disk = disk
        self.spool = disk / "spool"
        self._seen_lines = 0
        self.answered: dict[str, str] = {}
        """Level by id, of every 200."""
        self.answers: list[Answer] = []

    @property
    def recorder(self) -> int:
        """Its pid."""
        return self.gateway.pids("recorder")[0]

    def ask(self, model: str, level: str | None = None) -> Answer:
        """One request."""
        data = [0.5] * (30 * ROWS)
        body = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [ROWS, 30], "data": data}]}
        headers = {} if level is None else {"x-tidegate-audit-level": level}
        began = time.perf_counter()
        reply: Reply = call(self.gateway.data_url, "POST", f"/v2/models/{model}/infer", body, headers)
        ms = (time.perf_counter() - began) * 1000
        audit, identity = reply.headers.get("x-tidegate-audit"), reply.headers.get("x-prediction-id")
        if reply.status == 200:
            assert identity not in self.answered
            self.answered[str(identity)] = str(audit)
        code = None if reply.status == 200 else reply.content["code"]
        answer = Answer(reply.status, code, audit, identity, ms)
        self.answers.append(answer)
        return answer

    def ask_until(self, model: str, wanted: Callable[[Answer], bool], wait_s: float = 60) -> list[Answer]:
        """Requests until one is answered as wanted; all of them."""
        deadline, said = time.monotonic() + wait_s, []
        while not said or not wanted(said[-1]):
            assert time.monotonic() < deadline, f"{said[-3:]}: {self.gateway.said()}"
            # Between the lives of a process there may be nobody to answer.
            with contextlib.suppress(OSError):
                said.append(self.ask(model))
        return said

    def await_true(self, condition: Callable[[], bool], wait_s: float = 60) -> None:
        """Poll."""
        deadline = time.monotonic() + wait_s
        while not condition():
            assert time.monotonic() < deadline, self.gateway.said()
            time.sleep(0.02)

    def lines(self) -> list[dict[str, Any]]:
        """The recorder's log lines since the last call of `begin`."""
        out = []
        for text in self.gateway.log.read_text().splitlines()[self._seen_lines :]:
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if line["role"] == "recorder":
                    out.append(line)
        return out

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its lines of one event."""
        return [line for line in self.lines() if line["event"] == event]

    def said_once(self, event: str) -> dict[str, Any]:
        """Its one line of an event, which may come a moment after what it tells."""
        self.await_true(lambda: bool(self.said(event)))
        (line,) = self.said(event)
        return line

    def begin(self) -> None:
        """What was said before does not count."""
        self._seen_lines = len(self.gateway.log.read_text().splitlines())
        self.answers.clear()

    def metric(self, name: str) -> float:
        """One series of /metrics, as of now."""
        token = (self.disk / "admin.token").read_text().strip()
        url = self.gateway.admin_url.split("//", 1)[1]
        import http.client  # noqa: PLC0415

        connection = http.client.HTTPConnection(url, timeout=10)
        connection.request("GET", "/metrics", headers={"authorization": f"Bearer {token}"})
        text = connection.getresponse().read().decode()
        connection.close()
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}"))

    def both_policies_apply(self) -> list[Answer]:
        """`lax` answers and says that nothing is kept; `strict` refuses, before it runs. Returns lax's answers."""
        said = self.ask_until("lax", lambda answer: answer.audit == "none")
        assert {answer.status for answer in said} == {200}
        # A recorder that had no processor for a moment makes no room for long: what is answered till then is kept.
        *kept, refused = self.ask_until("strict", lambda answer: answer.status != 200)
        assert {answer.audit for answer in kept} <= {"spool"}
        assert (refused.status, refused.code, refused.id) == (503, "audit_unavailable", None)
        return said

    def all_is_well(self, wait_s: float = 60) -> None:
        """Both answer and are logged again, without a restart of anything."""
        before = {role: self.gateway.pids(role) for role in ("worker", "recorder", "control")}
        for model in ("lax", "strict"):
            self.ask_until(model, lambda answer: answer.audit == "spool", wait_s)
        assert {role: self.gateway.pids(role) for role in before} == before

    def adds_up(self) -> None:
        """Every answer that was said to be logged is in the spool, every other number is told by a gap; of a process
        that was killed, once the recorder has come to its end."""
        self.await_true(lambda: self._unsynced() == 0)
        deadline = time.monotonic() + 60
        while wrong := self._wrongly_told():
            assert time.monotonic() < deadline, wrong[:10]
            time.sleep(0.1)
        report = verify(self.spool)
        assert report.ok, [epoch for epoch in report.epochs if not epoch.ok]

    def _wrongly_told(self) -> list[tuple[str, str]]:
        """Answers whose level is not what the spool has of them."""
        report = verify(self.spool)
        gaps = {
            f"{epoch.source}-{epoch.epoch:08x}": [(a, b) for a, b, _ in epoch.gaps] for epoch in report.epochs
        }
        wrong = []
        for identity, audit in self.answered.items():
            key, _, seq = identity.rpartition("-")
            told = any(a <= int(seq, 16) <= (2**63 if b is None else b) for a, b in gaps.get(key, []))
            if told != (audit == "none"):
                wrong.append((identity, audit))
        return wrong

    @property
    def rings(self) -> Path:
        """Where they are while they are in memory."""
        return Path("/dev/shm") / f"tidegate-{(self.disk / 'gateway_id').read_text().strip()}"  # noqa: S108

    def end(self) -> None:
        """Kill all of it; nothing stays in memory."""
        self.gateway.kill9_all()
        shutil.rmtree(self.rings, ignore_errors=True)

    def _unsynced(self) -> int:
        return sum(source.ring_bytes or 0 for source in status(self.spool, self.rings))

    def fill(self) -> None:
        """Take all that is free."""
        with (self.disk / "ballast").open("ab") as file:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), file.tell(), size)
                        file.seek(0, os.SEEK_END)

    def empty(self) -> None:
        """Give it back."""
        (self.disk / "ballast").unlink()

    @contextlib.contextmanager
    def limited(self, limit: int, value: int) -> Iterator[None]:
        """A limit of the recorder's, for a while."""
        before = resource.prlimit(self.recorder, limit)
        resource.prlimit(self.recorder, limit, (value, before[1]))
        try:
            yield
        finally:
            resource.prlimit(self.recorder, limit, before)

    @contextlib.contextmanager
    def refused(self, *faults: str) -> Iterator[None]:
        """System calls of the recorder's that fail (`tests.faults.syscalls.fail_at`), for a while."""
        said = self.gateway.log.with_suffix(".strace")
        options = [option for fault in faults for option in ("-e", fault)]
        command = [tracer(), "-qq", "-f", "-p", str(self.recorder), "-o", os.devnull, *options]
        with said.open("wb") as err:
            attached = subprocess.Popen(command, stderr=err)
        try:
            self.await_true(lambda: self._traced() or attached.poll() is not None)
            if attached.poll() is not None:
                absent(f"strace cannot attach: {said.read_text().strip()}")
            yield
        finally:
            attached.terminate()
            attached.wait(10)

    def _traced(self) -> bool:
        status = Path(f"/proc/{self.recorder}/status").read_text()
        return int(status.partition("TracerPid:")[2].split()[0]) > 0

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """The spool cannot be written to by its path: a real EROFS, as after an error of the file system."""
        for command in (["--bind", str(self.spool)], ["-o", "remount,ro,bind"]):
            subprocess.run(["mount", *command, str(self.spool)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(self.spool)], check=True)

    def controls(self) -> list[str]:
        """Kinds of control's events on disk."""
        events = SpoolFeed(self.spool).read(1_000_000, 0).events
        return [event.kind for event in events if isinstance(event, Control) and event.model == "lax"]

    def forward_all(self) -> None:
        """As a forwarder that has caught up says it, where none can."""
        directory = self.disk / "forwarder"
        directory.mkdir(exist_ok=True)
        far = {epoch.key: {"partition": 0, "next_seq": 2**40} for epoch in epochs(self.spool)}
        (directory / "positions.new").write_text(json.dumps(far))
        (directory / "positions.new").rename(directory / "positions.json")

    def spool_bytes(self) -> int:
        """What the segments take."""
        return sum(path.stat().st_size for epoch in epochs(self.spool) for _, path in segments(epoch))


def start(tmp: Path, disk: Path, *settings: str) -> Troubled:
    """Serve both models from this disk; the log stands beside it."""
    models = tmp / "models"
    for version in ("1", "2"):
        write_mlp(models, version, int(version), name="lax", widths=(30, 8, 2))
    strict = write_mlp(models, "1", name="strict", widths=(30, 8, 2))
    (strict.parent / "bundle.toml").write_text('schema = 1\naudit = { on_unavailable = "fail" }\n')
    return Troubled(Gateway(models, disk, settings=(*SETTINGS, *settings)).start(), disk)
