"""Started: a server as a probe has it in hand, and what a probe is.

features starts one for each model (and each log setting) -> **probes** ask it through this. What a product's own form
looks like is the adapter's; whether an answer is right is told by the models of `small_models`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.peers.peer import Begin, Form, Message, Peer, Running, Setting
from bench.peers.probes.line import ANSWER_S, Line, Reply
from bench.peers.probes.small_models import scale_of
from bench.peers.probes.table import SEEN_CHARACTERS, Seen

_READY_PATHS = ("/v2/health/ready", "/readyz", "/-/healthz", "/health", "/ready", "/healthz")


class Started:
    """A server under a probe.

    Threading: methods may be called from several threads.
    """

    def __init__(self, peer: Peer, what: Begin, running: Running) -> None:
        self.peer = peer
        self.what = what
        self.running = running
        self.url = running.url
        self.kept: dict[str, Any] = {}
        """What one probe found and another one tells."""

    @property
    def form(self) -> Form:
        """JSON where the product takes it."""
        return "json" if "json" in self.peer.forms else "binary"

    def message(self, x: NDArray[Any], form: Form | None = None) -> Message:
        """A request of the served model."""
        name = "INPUT0" if self.what.model.startswith("id_") else "X"
        return self.peer.message(self.what.model, {name: x}, form or self.form)

    def ask(self, x: NDArray[Any], form: Form | None = None, timeout_s: float = ANSWER_S) -> Reply:
        """Ask on a connection of its own; raises OSError when there is no reply."""
        with Line(self.url, timeout_s) as line:
            return line.send(self.message(x, form))

    def value(self, reply: Reply) -> NDArray[Any]:
        """The first output.

        Raises:
            ValueError: the reply holds no prediction.
        """
        if not 200 <= reply.status < 300:
            raise ValueError(reply.text())
        try:
            outputs = self.peer.outputs(reply.headers, reply.body)
            return np.asarray(next(iter(outputs.values())))
        except Exception as exc:
            msg = f"a reply that cannot be read: {reply.text()}"
            raise ValueError(msg) from exc

    def version_of(self, reply: Reply, x: NDArray[Any], versions: Sequence[int] = (1,)) -> int:
        """The version whose right answer a reply is; 0 where it is nobody's.

        Raises:
            ValueError: the reply holds no prediction.
        """
        found = self.value(reply)
        for version in versions:
            # To the last bit: a product of FP32 has one right answer, and marks lie close together.
            expected = x * np.float32(scale_of(version)) if self.what.model == "scale" else x
            if found.size == x.size and np.array_equal(found.reshape(x.shape).astype(x.dtype), expected):
                return version
        return 0

    def is_right(self, x: NDArray[Any], form: Form | None = None) -> bool:
        """Whether it answers one request with what one of its versions says."""
        with contextlib.suppress(OSError, ValueError):
            return self.version_of(self.ask(x, form), x, (1, 2)) != 0
        return False

    def at_once(self, messages: Sequence[Message], connections: int = 32) -> list[Reply | OSError]:
        """Send requests over so many connections side by side; replies in the order of the requests."""
        replies: list[Reply | OSError] = [OSError("not sent")] * len(messages)

        def send(first: int) -> None:
            with Line(self.url) as line:
                for i in range(first, len(messages), connections):
                    try:
                        replies[i] = line.send(messages[i])
                    except OSError as exc:
                        replies[i] = exc

        with ThreadPoolExecutor(connections) as pool:
            list(pool.map(send, range(min(connections, len(messages)))))
        return replies

    def ready_path(self) -> str:
        """Where it says that it is ready; "" where no usual address answers with 200."""
        if "ready_path" not in self.kept:
            self.kept["ready_path"] = next((path for path in _READY_PATHS if self._says_ok(path)), "")
        return str(self.kept["ready_path"])

    def _says_ok(self, path: str) -> bool:
        with contextlib.suppress(OSError), Line(self.url, 5) as line:
            return line.request("GET", path).status == 200
        return False

    @property
    def model_file(self) -> Path:
        """Version 1 of the served model."""
        return self.what.repository / self.what.model / "1" / "model.onnx"


def setting_of(peer: Peer, workers: int = 1, batching: bool = True) -> Setting:
    """What a product is run with: the first choice of its calibration that is so; batching where it has it."""
    batching = batching and any(choice.batching for choice in peer.choices)
    so = (choice for choice in peer.choices if (choice.workers, choice.batching) == (workers, batching))
    return next(so, Setting(workers, batching))


@contextlib.contextmanager
def another(started: Started, setting: Setting) -> Iterator[Started]:
    """A second server of the same product over the same repository, ended with the context.

    Raises:
        Unavailable: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="tidegate-another-", ignore_cleanup_errors=True) as scratch:
        what = msgspec.structs.replace(started.what, home=Path(scratch), setting=setting)
        other = Started(started.peer, what, started.peer.begin(what))
        try:
            yield other
        finally:
            other.running.stop()


def in_batches_or_not(ask: Callable[[Started], Seen]) -> Callable[[Started], Seen]:
    """A probe that a server without batching is asked, too, where one with it does not pass."""

    def run(started: Started) -> Seen:
        seen = ask(started)
        if seen.answer != "no" or not started.what.setting.batching:
            return seen
        setting = setting_of(started.peer, started.what.setting.workers, batching=False)
        with another(started, setting) as other:
            alone = ask(other)
        said = f"without batching {alone.seen}; with it {seen.seen}"
        return Seen("partly" if alone.answer == "yes" else alone.answer, said)

    return run


Asked = Callable[[Started], Seen | None]
"""What it saw; None: there is no way of asking this product. OSError and ValueError count as `no`."""


class Probe(NamedTuple):
    """A row of the feature table.

    Attributes:
        group: the heading that it stands under.
        name: of the row, unique.
        asks: what is done and what counts as yes, in one sentence.
        run: asks it.
        model: what the server serves: one of `small_models`.
        audit: whether the product's nearest equivalent of an audit log is on.
        versions: of the model that are in the repository at the start.
        alone: it leaves a server behind that nothing else is to be asked of.
        fresh: it asks a server of which nothing was asked yet: what others asked may have taught it something.
        workers: processes that answer.
        characters: of what it saw, on a page.
        ways: products that have a way of doing it, by name; empty: all are asked.
    """

    group: str
    name: str
    asks: str
    run: Asked
    model: str = "scale"
    audit: bool = False
    versions: tuple[int, ...] = (1,)
    alone: bool = False
    fresh: bool = False
    workers: int = 1
    ways: tuple[str, ...] = ()
    characters: int = SEEN_CHARACTERS

    @property
    def needs(self) -> tuple[str, bool, tuple[int, ...], int]:
        """Probes that need the same may ask the same server."""
        return self.model, self.audit, self.versions, self.workers
