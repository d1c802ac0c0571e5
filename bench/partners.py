"""Partners: what a figure is held against, each a process of its own, pinned as the gateway is.

nginx is in bench.serving. Here: the bare loop (bench.bare), raw ONNX Runtime (bench.raw), and a client that floods
(bench.flood). All end with this process, since their stdin does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import msgspec

from bench.raw import Ran

_ROOT = Path(__file__).resolve().parent.parent


class _Child:
    def __init__(self, cpus: str | None, *arguments: str) -> None:
        pinned = [] if cpus is None else ["taskset", "-c", cpus]
        self._process = subprocess.Popen(  # noqa: S603
            [*pinned, sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(_ROOT), "ORT_DISABLE_TELEMETRY": "1"},
        )  # fmt: skip
        self.pid = self._process.pid

    def _line(self) -> str:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            msg = f"a partner of the figure ended with status {self._process.wait(10)}"
            raise ChildProcessError(msg)
        return line

    def stop(self) -> None:
        """End it."""
        self._process.communicate(timeout=20)

    def __enter__(self):  # type: ignore[no-untyped-def]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()


class Bare(_Child):
    """A bare loop that answers everything with one JSON text."""

    def __init__(self, reply_file: Path, cpus: str | None = None) -> None:
        super().__init__(cpus, "bench.bare", "--reply", str(reply_file))
        self.url = f"http://127.0.0.1:{int(self._line())}"


class Flood(_Child):
    """A client at an address of its own that asks as fast as it is answered."""

    def __init__(
        self, url: str, path: str, body_file: Path, cpus: str | None = None, *, connections: int = 64
    ) -> None:
        super().__init__(
            cpus, "bench.flood", "--url", url, "--path", path, "--body", str(body_file),
            "--connections", str(connections),
        )  # fmt: skip
        # It is under way.
        self._line()

    def end(self) -> dict[str, int]:
        """End it; what it got, by status."""
        said, _ = self._process.communicate(timeout=20)
        return dict(json.loads(said))


class Raw(_Child):
    """Raw ONNX Runtime over one model, `rows` a run."""

    def __init__(self, model_file: Path, rows: int, cpus: str | None = None) -> None:
        super().__init__(cpus, "bench.raw", "--model", str(model_file), "--rows", str(rows))

    def run(self, seconds: float) -> Ran:
        """Loop for so long."""
        self._process.stdin.write(f"{seconds}\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return msgspec.json.decode(self._line(), type=Ran)
