"""The trial server: `python -P -m loaders.trial`, loads each model in a child of its own first.

`verdicts` starts it and asks, one JSON line a version on stdin; one line comes back on stdout. It has imported ONNX
Runtime once and forks: a child costs milliseconds, and whatever a model does to it, it does to nobody else. The child
reads the files, gives up its rights, then parses, loads, probes, checks golden rows and warms up, under caps on memory,
processor time and wall clock. Single-threaded until a child's own session; ends after some idle seconds.
"""

from __future__ import annotations

import faulthandler
import io
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime

from loaders import confine, material
from loaders.errors import ModelError, TrialFailed
from loaders.session import Session, Threads, make
from loaders.verdicts import Facts, Refused, Request, Verdict
from loaders.wire import encoded

IDLE_S = 10.0
WALL_FACTOR = 10
"""Wall clock that a trial may take, in its processor time: others run here too."""
PARENT = os.getppid()
"""Who asks; a child does not outlive it."""
DOING = {
    "read": "its file was looked through",
    "load": "ONNX Runtime loaded it",
    "probe": "it was probed with made-up rows",
    "golden": "its golden rows were run",
    "warm": "it was warmed up",
}
"""What was done in a stage, for people."""
_FD_MAX = 1 << 20
_BAD_ALLOC = ("bad_alloc", "Failed to allocate memory", "bad allocation")


def main() -> None:
    """Entry of the process."""
    # Whatever a library prints must not be taken for a verdict.
    out = os.dup(1)
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 1)
    # Not lower: who asks may give way already, and a trial that gets next to nothing runs out of time.
    os.setpriority(os.PRIO_PROCESS, 0, max(10, os.getpriority(os.PRIO_PROCESS, 0)))
    _rehearse()
    confine.adopt_orphans()
    pending = b""
    while True:
        ready, _, _ = select.select([0], [], [], IDLE_S)
        if not ready:
            return
        part = os.read(0, 65_536)
        if not part:
            return
        pending += part
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            verdict = tried(msgspec.json.decode(line, type=Request), devnull)
            confine.end_orphans()
            os.write(out, msgspec.json.encode(verdict) + b"\n")


def _rehearse() -> None:
    """Load one small model, so that what ONNX Runtime makes once is made before the children are."""
    value = encoded(1, encoded(1, 1) + encoded(2, encoded(1, encoded(1, 1))))

    def named(name: bytes) -> bytes:
        return encoded(1, name) + encoded(2, value)

    node = encoded(1, b"X") + encoded(2, b"Y") + encoded(4, b"Identity")
    graph = encoded(1, node) + encoded(2, b"g") + encoded(11, named(b"X")) + encoded(12, named(b"Y"))
    content = encoded(1, 8) + encoded(7, graph) + encoded(8, encoded(1, b"") + encoded(2, 17))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    session.run(None, {"X": np.zeros(1, np.float32)})
    # Imported by NumPy when it is first asked for; a child may read no more files by then.
    np.random.default_rng(0).standard_normal(1)
    # And what it takes to open a reference.
    kept = io.BytesIO()
    np.savez_compressed(kept, rows=np.zeros((1, 1), np.float32))
    kept.seek(0)
    with np.load(kept, allow_pickle=False) as file:
        np.unique(file["rows"])


def tried(request: Request, devnull: int) -> Verdict:
    """Try one version in a child; never raises, whatever the model does."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for fd in (0, 1, 2):
                os.dup2(devnull, fd)
            # Who asks listens at one of them: a verdict comes from the server alone.
            os.closerange(3, writing)
            os.closerange(writing + 1, _FD_MAX)
            _child(request, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    told, late = _listen(reading, pid, request.cpu_s * WALL_FACTOR)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    verdict = Verdict(model=request.model, version=request.version, at_s=time.time())
    lines = told.split(b"\n")
    for line in lines:
        if line.startswith(b"{"):
            try:
                found = msgspec.json.decode(line, type=Verdict)
            except msgspec.DecodeError:
                continue
            return found
    stages = [line.decode(errors="replace") for line in lines if line in _STAGES]
    text, passing = _ending(request, status, stages[-1] if stages else "read", late=late)
    refused = Refused(
        code=TrialFailed.code, text=f"{request.model}/{request.version}: {text}", passing=passing
    )
    return msgspec.structs.replace(verdict, refused=refused)


_STAGES = frozenset(stage.encode() for stage in DOING)


def _listen(reading: int, pid: int, wall_s: float) -> tuple[bytes, bool]:
    """What the child says until it ends; it is killed when time is up, or when who asked has gone."""
    told, deadline, late = b"", time.monotonic() + wall_s, False
    while True:
        wait_s = max(deadline - time.monotonic(), 0)
        ready, _, _ = select.select([reading], [], [], min(wait_s, 0.5))
        if ready:
            part = os.read(reading, 65_536)
            if not part:
                return told, late
            # A child that was taken over may say much; a verdict is short.
            told = (told + part)[-1_000_000:]
        elif wait_s == 0 and not late:
            late = True
            os.kill(pid, signal.SIGKILL)
        elif os.getppid() != PARENT:
            os.kill(pid, signal.SIGKILL)


def _ending(request: Request, status: int, stage: str, *, late: bool) -> tuple[str, bool]:
    """Why a child that gave no verdict ended, in words, and whether it may be otherwise next time."""
    doing = DOING[stage]
    if late:
        return f"its trial was killed after {request.cpu_s * WALL_FACTOR:.0f} s while {doing}", True
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return (
                f"its trial was killed: it needed more than {request.cpu_s:.0f} s of processor time while {doing}",
                True,
            )
        if number == signal.SIGKILL:
            return f"its trial was killed while {doing}: this host has no memory left for it", True
        name = signal.Signals(number).name
        hint = ", perhaps for want of memory" if number == signal.SIGABRT else ""
        return f"it crashes ONNX Runtime ({name}{hint}) while {doing}; it was stopped in its trial", False
    return f"its trial ended with code {os.waitstatus_to_exitcode(status)} while {doing}", False


def _child(request: Request, out: int) -> None:
    def say(line: bytes) -> None:
        os.write(out, line + b"\n")

    verdict = Verdict(model=request.model, version=request.version, at_s=time.time())
    faulthandler.disable()
    try:
        confine.cap(request.cpu_s, request.memory_bytes)
        facts = _tried_here(request, say)
        verdict = msgspec.structs.replace(verdict, facts=facts)
    except ModelError as exc:
        text, code = str(exc), exc.code
        passing = any(word in text for word in _BAD_ALLOC)
        if passing:
            code, text = TrialFailed.code, _no_memory(request)
        verdict = msgspec.structs.replace(verdict, refused=Refused(code=code, text=text, passing=passing))
    except MemoryError:
        refused = Refused(code=TrialFailed.code, text=_no_memory(request), passing=True)
        verdict = msgspec.structs.replace(verdict, refused=refused)
    except Exception as exc:  # noqa: BLE001  one bad model must have its verdict
        # Texts of foreign errors may hold paths, and this one reaches clients.
        where = f"{request.model}/{request.version}"
        refused = Refused(code=ModelError.code, text=f"{where}: it cannot be loaded: {type(exc).__name__}")
        verdict = msgspec.structs.replace(verdict, refused=refused)
    say(msgspec.json.encode(verdict))


def _no_memory(request: Request) -> str:
    return (
        f"{request.model}/{request.version}: its trial needed more than {request.memory_bytes >> 20} MiB of memory"
        " to load and warm up"
    )


def _tried_here(request: Request, say: Callable[[bytes], None]) -> Facts:
    started = time.monotonic_ns()
    found = material.read(Path(request.root), request.model, request.version)
    memory = confine.Memory()

    def on_stage(stage: str) -> None:
        say(stage.encode())
        if stage == "load":
            # Every file is read by now: nothing else of this host is needed any more.
            confine.give_up_rights()

    session = make(found, Threads(request.providers, request.intra_op_threads), on_stage=on_stage)
    return _facts(session, memory.grown_bytes(), (time.monotonic_ns() - started) // 1_000_000)


def _facts(session: Session, memory_bytes: int, load_ms: int) -> Facts:
    return Facts(
        tree_sha256=session.bundle.tree_sha256,
        config_sha256=session.bundle.config_sha256,
        canonical_sha256=session.canonical_sha256,
        batchable=session.batchable,
        inline_allowed=session.inline_allowed,
        warm_cost_ns=session.warm_cost_ns,
        locations=session.locations,
        endless=session.endless,
        memory_bytes=memory_bytes,
        load_ms=load_ms,
        golden_lines=session.golden_lines,
    )


if __name__ == "__main__":
    main()
