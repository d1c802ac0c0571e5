"""Peer: what a product must be able to do here to be compared. Pure; no process, no socket.

**peer** <- adapters implement it <- calibration, comparison and the probes use it. One contract for all, ours included:
whatever is measured of a peer is measured of the gateway by the same lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from numpy.typing import NDArray

Form = Literal["json", "binary"]
Arrays = Mapping[str, NDArray[Any]]
"""Tensors by name."""
Say = Callable[[str], None]
"""Told one line of what is going on."""


class Unavailable(Exception):
    """A product cannot be installed or started on this machine.

    Args:
        name: the peer's, as in --peer.
        why: one sentence: what was tried, what was found.
        last_lines: the end of what the product (or its installer) said; "" where it said nothing.
    """

    def __init__(self, name: str, why: str, last_lines: str = "") -> None:
        super().__init__(f"{name}: {why}" + (f"\n{last_lines}" if last_lines else ""))
        self.name = name
        self.why = why
        self.last_lines = last_lines


class Source(NamedTuple):
    """A claim and where it stands.

    Attributes:
        says: what is taken from there, in our words.
        title: of the page.
        address: https address of the vendor's public page.
    """

    says: str
    title: str
    address: str


class Setting(msgspec.Struct, frozen=True):
    """One way of running a product: one point of a calibration."""

    workers: int = 1
    """Processes that answer requests (or instances of the model, where a product has one process)."""
    batching: bool = True
    extra: dict[str, str] = {}
    """A peer's own further choices, such as {"max_batch_size": "32"}."""

    def text(self) -> str:
        """In one line, as tables have it."""
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        further = "".join(f", {name}={value}" for name, value in sorted(self.extra.items()))
        return f"{workers}, batching {'on' if self.batching else 'off'}{further}"


class Cell(msgspec.Struct, frozen=True, order=True):
    """One thing that is measured."""

    model: str
    form: Form
    rows: int
    audit: bool

    def text(self) -> str:
        """In one line, as tables have it."""
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        return f"{self.model}, {self.form}, {rows}, audit {'on' if self.audit else 'off'}"


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is started with."""

    repository: Path
    """NAME/VERSION/model.onnx, as ours; a peer that wants another layout makes it in `home`."""
    model: str
    home: Path
    """An empty directory of this start alone."""
    setting: Setting
    audit: bool = False
    """The product's nearest equivalent of our audit log."""
    monitor: bool = True
    """What reads that log to watch models, where a product has such a thing: off under load, since ours alone has."""
    one_by_one: bool = False
    """The log itself is asked: no record is held back to be written with others, where a product lets one choose."""
    cpus: str | None = None
    """Processors of the whole tree, as taskset takes them; None: all."""
    receiver: str | None = None
    """Where the log is to go (http://HOST:PORT, or HOST:PORT of a broker, as the product takes it)."""


class Running(Protocol):
    """A started server."""

    url: str
    """Scheme, host and port."""
    home: Path
    """`Begin.home`: where its output and, without a receiver, its log are."""

    def pids(self) -> list[int]:
        """The whole tree, those that were reparented too."""

    def said(self) -> str:
        """The end of its output."""

    def new_version(self, version: str) -> None:
        """Make it serve NAME/<version>, which is in the repository by now, by the product's own way.

        A reload where the product has one, else a restart. Returns when it was asked; whoever wants to know polls.
        """

    def stop(self) -> None:
        """End the whole tree; returns when it is gone."""


class Message(NamedTuple):
    """One request in a product's own form; always a POST.

    Attributes:
        path: with a leading slash.
        headers: name and value; without Host and Content-Length, which the sender adds.
        body: as it is sent.
    """

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def whole(self, host: str = "127.0.0.1") -> bytes:
        """The request as the bytes of HTTP/1.1 on a kept connection."""
        named = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        head = f"POST {self.path} HTTP/1.1\r\nhost: {host}\r\naccept: */*\r\n{named}"
        return f"{head}content-length: {len(self.body)}\r\n\r\n".encode() + self.body


class Peer(Protocol):
    """A product. Instances keep no state but what `prepare` found."""

    name: str
    """As in --peer."""
    title: str
    """As its makers write it."""
    forms: frozenset[Form]
    """How tensors can be sent; a form that is missing is "not offered" in the tables."""
    audit: str
    """Its nearest equivalent of our audit log, in words; "" where none is offered."""
    receiver_kind: str
    """What its log can be sent to: "kafka", "http", "otlp"; "": a file below its home, or nothing."""
    sources: tuple[Source, ...]
    """The vendor's recommended production settings that are followed here."""
    choices: tuple[Setting, ...]
    """What a calibration tries."""

    def prepare(self, say: Say) -> str:
        """Make its environment; returns the product's version.

        Raises:
            Unavailable: it cannot be installed.
        """

    def begin(self, what: Begin) -> Running:
        """Start it; returns as soon as it answers a prediction (any reply with 2xx to a right request).

        Raises:
            Unavailable: it did not start, with its last lines; nothing of it is left running.
        """

    def message(self, model: str, feeds: Arrays, form: Form) -> Message:
        """The request for a prediction."""

    def outputs(self, headers: Mapping[str, str], body: bytes) -> Mapping[str, NDArray[Any]]:
        """A reply's tensors by name ("": the first one, of a product that does not name it).

        Args:
            headers: by lower-case name.
            body: whole.
        """
