"""Verdicts of trial loads: a version is loaded in a child process first, once, and what came of it is kept.

session asks **Trials** -> trial server (`loaders.trial`) -> a child per model. Verdicts are kept by the digests of
files and settings, the runtime's version and the settings of the session, so that a warm restart costs nothing and a
worker that waits for another's trial reads its verdict. One worker at a time tries and loads.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import site
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import loaders
from loaders.errors import MemoryExceeded, TrialFailed, VersionChanged, by_code
from loaders.memory import SHARE, Plan, limit_bytes

FORMAT = 2
"""Verdicts of another are made anew."""
PASSING_S = 60.0
"""How long a refusal holds that may have been the host's fault: no memory, no time."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial found out.

    Attributes:
        memory_bytes: what the process grew by, model and warm runs together.
        endless: a run on zeros did not end by itself; warm-up is left out.
        locations: other files that hold weights.
    """

    tree_sha256: str
    config_sha256: str = ""
    canonical_sha256: str
    batchable: bool
    inline_allowed: bool
    warm_cost_ns: dict[int, int]
    locations: tuple[str, ...] = ()
    endless: bool = False
    memory_bytes: int = 0
    load_ms: int = 0
    golden_lines: int = 0


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Why a version is not loaded; `passing` when the host may have been the reason."""

    code: str
    text: str
    passing: bool = False


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One of both, of one version."""

    model: str
    version: str
    at_s: float
    format: int = FORMAT
    facts: Facts | None = None
    refused: Refused | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the trial server is asked: one JSON line."""

    root: str
    model: str
    version: str
    providers: tuple[str, ...]
    intra_op_threads: int
    cpu_s: float
    memory_bytes: int


class Trials:
    """Tries versions and keeps verdicts.

    Args:
        directory: where verdicts lie; made when it is not there.
        cpu_s: processor time that a load may take, before a second for each 20 MB of files.
        memory_bytes: memory that a load may take at most; 0: by the size of the files.
        plan: what all workers may take; None does not count.
        run: names this life of the gateway. In it a version that is loaded is what it was when the first worker loaded
            it: changed files are refused until it is unloaded. None: nothing is remembered.

    Threading: one thread, the loader's. A trial costs about 20 ms beside the load itself; the first one, and the first
    after ten idle seconds, a start of the server (0.3 s).
    """

    def __init__(
        self,
        directory: Path,
        *,
        cpu_s: float = 8.0,
        memory_bytes: int = 0,
        plan: Plan | None = None,
        run: str | None = None,
    ) -> None:
        self._directory = directory
        self._cpu_s = cpu_s
        self._memory_bytes = memory_bytes
        self._plan = plan
        self._run = run
        self._server: subprocess.Popen[bytes] | None = None
        self._ahead: int | None = None
        self._held: dict[int, tuple[str, int]] = {}

    def prepare(self, directory: Path) -> None:
        """Start the server ahead of need, where a trial is likely: it gets ready while the version's files are read.

        Likely is it for files that are younger than the last verdict. One worker of the host does so, the others will
        read the verdict that it gets. Cost: two stats and a lock; a server that is not needed ends when idle.

        Args:
            directory: the version's.
        """
        if self._server is not None and self._server.poll() is None:
            return
        try:
            appeared_ns = directory.stat().st_ctime_ns
            judged_ns = self._directory.stat().st_mtime_ns if self._directory.exists() else 0
        except OSError:
            return
        if appeared_ns <= judged_ns or self._ahead is not None:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._directory / "ahead", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return
        self._ahead = fd
        self._server = _start()

    def _let_go(self) -> None:
        """The trial that the server was started for is over: another worker may start its own."""
        fd, self._ahead = self._ahead, None
        if fd is not None:
            os.close(fd)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the right to try and load; other workers wait. A process that dies lets it go."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def facts(self, request: Request, digests: tuple[str, str], identity: str, size_bytes: int) -> Facts:
        """What a trial of the version says, now or earlier. Within `turn`.

        Args:
            digests: of the version's files, and of its settings; the trial must have seen the same.
            identity: digests and runtime that the verdict holds for.
            size_bytes: of all its files: larger ones may take more.

        Raises:
            ModelError: the trial refused it; of the kind that loading would have raised.
            TrialFailed: it crashed, or took too much.
            VersionChanged: the trial saw other files.
        """
        try:
            return self._judged(request, digests, identity, size_bytes)
        finally:
            self._let_go()

    def _judged(self, request: Request, digests: tuple[str, str], identity: str, size_bytes: int) -> Facts:
        key = hashlib.sha256(f"{FORMAT}\0{request.model}\0{request.version}\0{identity}".encode()).hexdigest()
        verdict = self._kept(key)
        if verdict is None:
            limits = msgspec.structs.replace(
                request,
                cpu_s=self._cpu_s + size_bytes / 20_000_000,
                memory_bytes=self._memory_bytes
                or max(2 << 30, min(8 * size_bytes, int(limit_bytes() * SHARE))),
            )
            verdict = self._try(limits)
            found = verdict.facts
            if found is not None and (found.tree_sha256, found.config_sha256) != digests:
                msg = (
                    f"{request.model}/{request.version}: its files changed while it was loaded:"
                    " put them there whole, then load it again"
                )
                raise VersionChanged(msg)
            if verdict.refused is None or by_code(verdict.refused.code).kept:
                self._keep(key, verdict)
        if verdict.refused is not None:
            raise by_code(verdict.refused.code)(verdict.refused.text)
        if verdict.facts is None:
            msg = f"{request.model}/{request.version}: its trial gave no verdict"
            raise TrialFailed(msg)
        return verdict.facts

    def admit(self, where: str, facts: Facts) -> None:
        """Refuse a version for which there is no memory.

        Raises:
            MemoryExceeded: with the sum.
        """
        if self._plan is None:
            return
        held = sum(size for _, size in self._held.values())
        why = self._plan.refusal(held, facts.memory_bytes, len(self._held))
        if why:
            msg = f"{where}: {why}"
            raise MemoryExceeded(msg)

    def hold(self, session: Any, facts: Facts) -> None:
        """Count a session's memory for as long as it lives."""
        number = id(session)
        self._held[number] = (f"{session.model}/{session.version}", facts.memory_bytes)
        weakref.finalize(session, self._held.pop, number, None)

    def check_same(self, model: str, version: str, tree_sha256: str) -> None:
        """Refuse files that are not those that are loaded under the same version, here or in another worker.

        Raises:
            VersionChanged: names both digests.
        """
        pin = self._pin(model, version)
        if pin is None:
            return
        try:
            run, _, loaded = pin.read_text().partition(" ")
        except (OSError, ValueError):
            return
        if run == self._run and loaded != tree_sha256:
            msg = (
                f"{model}/{version}: its files changed: loaded are {loaded[:12]}, there are {tree_sha256[:12]} now; a"
                " version never changes: put them under a new one, or unload this one first"
            )
            raise VersionChanged(msg)

    def pin(self, model: str, version: str, tree_sha256: str) -> None:
        """Remember what is loaded."""
        pin = self._pin(model, version)
        if pin is not None:
            with contextlib.suppress(OSError):
                pin.parent.mkdir(mode=0o700, exist_ok=True)
                pin.write_text(f"{self._run} {tree_sha256}")

    def release(self, model: str, version: str) -> None:
        """It was unloaded: other files may come in its place."""
        pin = self._pin(model, version)
        if pin is not None:
            with contextlib.suppress(OSError):
                pin.unlink()

    def _pin(self, model: str, version: str) -> Path | None:
        return None if self._run is None else self._directory / "pins" / f"{model}@{version}"

    def close(self) -> None:
        """End the trial server, and with it a trial under way; from any thread."""
        self._let_go()
        server, self._server = self._server, None
        if server is not None:
            # The loader's thread may be waiting for its answer: pipes are closed once there is none to come.
            server.kill()
            _end(server)

    def _kept(self, key: str) -> Verdict | None:
        try:
            content = (self._directory / f"{key}.json").read_bytes()
            verdict = msgspec.json.decode(content, type=Verdict)
        except (OSError, msgspec.DecodeError):
            return None
        if verdict.refused is not None and verdict.refused.passing:
            age_s = time.time() - verdict.at_s
            if not 0 <= age_s < PASSING_S:
                return None
        return verdict

    def _keep(self, key: str, verdict: Verdict) -> None:
        # What cannot be kept is tried again: no reason to refuse a good model.
        with contextlib.suppress(OSError):
            path = self._directory / f"{key}.json"
            beside = path.with_suffix(".part")
            beside.write_bytes(msgspec.json.encode(verdict))
            beside.replace(path)

    def _try(self, request: Request) -> Verdict:
        line = msgspec.json.encode(request) + b"\n"
        for _ in range(2):
            # A server that ended for idleness between two trials is started anew, once.
            answer = self._ask(line)
            if answer:
                return msgspec.json.decode(answer, type=Verdict)
        msg = f"{request.model}/{request.version}: its trial gave no verdict: the trial server ended"
        raise TrialFailed(msg)

    def _ask(self, line: bytes) -> bytes:
        server = self._server
        if server is None or server.poll() is not None:
            server = self._server = _start()
        assert server.stdin is not None  # noqa: S101
        assert server.stdout is not None  # noqa: S101
        answer = b""
        with contextlib.suppress(OSError):
            server.stdin.write(line)
            server.stdin.flush()
            answer = server.stdout.readline()
        if not answer:
            # It has ended, or is about to: one on its way out still counts as running.
            self._server = None
            _end(server)
        return answer


def known_memory(directory: Path) -> dict[tuple[str, str], int]:
    """Memory of versions as their last trials measured it, by model and version. Cost: one small file a verdict."""
    newest: dict[tuple[str, str], tuple[float, int]] = {}
    for path in directory.glob("*.json"):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            verdict = msgspec.json.decode(path.read_bytes(), type=Verdict)
            key = (verdict.model, verdict.version)
            if verdict.facts is not None and verdict.at_s >= newest.get(key, (0.0, 0))[0]:
                newest[key] = (verdict.at_s, verdict.facts.memory_bytes)
    return {key: size for key, (_, size) in newest.items()}


def _start() -> subprocess.Popen[bytes]:
    root = str(Path(loaders.__file__).resolve().parent.parent)
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
    # `-P` keeps a source tree off the search path; installed packages need nothing.
    if root not in {
        str(Path(path).resolve()) for path in (*site.getsitepackages(), site.getusersitepackages())
    }:
        before = environment.get("PYTHONPATH", "")
        if root not in before.split(os.pathsep):
            environment["PYTHONPATH"] = os.pathsep.join(part for part in (root, before) if part)
    server = subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-m", "loaders.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    # It ends by itself when it is idle: without somebody who waits for that, it would stay as a zombie.
    threading.Thread(target=server.wait, name="trial-server", daemon=True).start()
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    server.wait()
