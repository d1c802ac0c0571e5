"""Served process: the life of a started server, which is the same whatever the product.

Begin -> **Served** -> a tree that answers predictions; an adapter's own class of it says how the product is started,
what files it wants, and how it takes up another version.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cached_property
from pathlib import Path

from bench.peers import environment
from bench.peers.environment import Environment
from bench.peers.onnx_file import model_file_of, ones, signature_of
from bench.peers.peer import Begin, Form, Message, Peer, Unavailable
from bench.peers.posting import post
from bench.peers.processes import START_S, Tree, free_port

APPS = Path(__file__).resolve().parent / "served"
"""Where the code that runs inside products lies."""
TAKEN = "already in use"
_ANSWER_S = 10.0
_LOAD_S = 120.0


class Served:
    """A started server; see `Running`. It answers predictions once this is made.

    A product without a reload needs `command` alone.

    Attributes:
        models: the repository of a product that wants another layout than ours; made by its adapter.
        version: the one that it serves, or was asked to.
        versions: those that were in the repository at the start, the lowest first.
        url: where it is to serve, on loopback.
        side_port: another port of its own, for metrics or administration.
        first: a right request.

    Raises:
        Unavailable: the model cannot be read, or the server did not start: with its last lines. Nothing of it is left.
    """

    lock = ""
    """What it is installed from: locks/<lock>.lock; "": it needs no environment of its own."""
    start_s = START_S
    metrics_url = ""
    """Where its metrics are, if elsewhere than its `url` has them."""

    def __init__(self, peer: Peer, what: Begin) -> None:
        self.peer, self.what = peer, what
        self.home = what.home
        self.models = what.home / "models"
        found = (path.parent.name for path in (what.repository / what.model).glob("*/model.onnx"))
        self.versions = sorted(found, key=int)
        if not self.versions:
            raise Unavailable(peer.name, f"the repository has no version of {what.model}")
        self.version = self.versions[0]
        try:
            self.signature = signature_of(self.model_file())
        except Exception as exc:
            raise Unavailable(peer.name, f"the model {what.model} cannot be read: {exc}") from exc
        self.first = peer.message(what.model, ones(self.signature), self.first_form())
        try:
            self._begin()
        except Unavailable as exc:
            # Ports are chosen before the server takes them: somebody else was quicker.
            if TAKEN not in exc.last_lines.lower():
                raise
            self._begin()

    def _begin(self) -> None:
        self.port, self.side_port = free_port(), free_port()
        self.url, self.side_url = (f"http://127.0.0.1:{port}" for port in (self.port, self.side_port))
        # In the machine's own place a server that is killed leaves its temporary files. Not below its home: sockets are
        # among them, whose paths have at most 107 characters.
        self._scratch = tempfile.mkdtemp(prefix="tidegate-tmp-")
        try:
            self.lay_out()
            self._start()
            self._tree.await_answer(self.answers, self.start_s)
        except BaseException:
            self._leave()
            raise

    def _start(self) -> None:
        environ = {"TMPDIR": self._scratch, **self.environ()}
        self._tree = Tree(
            self.peer.name, self.command(), home=self.home, environ=environ, cpus=self.what.cpus
        )

    def _leave(self) -> None:
        self.clear()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @cached_property
    def installed(self) -> Environment:
        """Its environment."""
        return environment.made(self.lock, lambda _: None)

    def model_file(self, version: str = "") -> Path:
        """A version's file in the given repository; "": of the version that it serves."""
        return model_file_of(self.what.repository, self.what.model, version or self.version)

    def first_form(self) -> Form:
        """How it is asked whether it is there."""
        return "json" if "json" in self.peer.forms else "binary"

    def lay_out(self) -> None:
        """Write what it is started from, for ports that were just chosen; nothing here."""

    def command(self) -> list[str]:
        """Its command line."""
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        """What it is started with beside this process's own."""
        return dict(self.installed.environ) if self.lock else {}

    def answers(self) -> bool:
        """Whether it answers a right request; OSError when nothing answers."""
        return 200 <= post(self.url, self.first, _ANSWER_S).status < 300

    def clear(self) -> None:
        """Take away what lies outside its home; nothing here."""

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._tree.pid

    def pids(self) -> list[int]:
        """See `Running`."""
        return self._tree.pids()

    def said(self) -> str:
        """See `Running`."""
        return self._tree.said()

    def new_version(self, version: str) -> None:
        """Restart it with the other file, as a product without a reload is."""
        self._tree.stop()
        self.version = version
        self._start()

    def ask_to_load(self, version: str, asked: Message) -> None:
        """Ask it for a version by a request of its own.

        Raises:
            Unavailable: it said no; with what it said.
        """
        answer = post(self.url, asked, _LOAD_S)
        if answer.status != 200:
            why = f"version {version} of {self.what.model} was not loaded ({answer.status})"
            raise Unavailable(self.peer.name, why, answer.body.decode(errors="replace")[-2000:])
        self.version = version

    def stop(self) -> None:
        """See `Running`."""
        try:
            self._tree.stop()
        finally:
            self._leave()
