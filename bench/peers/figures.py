"""Figures: what is measured, chosen and found, as it is kept in JSON. Pure.

loads fill `Closed` and `Open`, calibration `Chosen`, comparison `Found`; summary and page read them.
"""

from __future__ import annotations

import msgspec

from bench import report
from bench.peers.peer import Cell, Setting, Source


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """A closed loop."""

    requests: int
    """Answered with 2xx."""
    errors: int
    """Not 2xx, or the connection broke."""
    cpu_s: float
    """Of the whole tree."""
    per_second: float
    p50_ms: float
    """With the queue that the connections themselves make."""
    foreign_cpus: float
    """Processors that others took meanwhile."""
    checked: int

    @property
    def per_cpu_s(self) -> float:
        """Requests that one processor second of the whole tree answers."""
        return self.requests / self.cpu_s if self.cpu_s else 0.0


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """An open loop; latencies count from when a request was due, in milliseconds.

    They are of what was answered with 2xx and of what had no answer; None where there was neither.
    """

    offered_per_second: float
    requests: int
    errors: dict[str, int]
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    slowest_ms: list[float]
    """The slowest 1%, slowest first: what several rounds' percentiles are made of."""
    timed: int | None = None
    """Requests that the latencies are of; None: older results, in which `slowest_ms` was of all requests."""
    generator_limited: bool
    """The generator handed over more than 1% of them more than 1 ms late: latencies hold its own lag."""
    checked: int
    foreign_cpus: float | None = None
    """Processors that others took meanwhile; None: older results."""


class How(msgspec.Struct, frozen=True, kw_only=True):
    """What every load of a run has in common."""

    seconds: float = 1.5
    """Of each load."""
    server_cpu: int = 0
    generator_cpu: int = 1
    distinct: int = 10_000


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One setting."""

    setting: Setting
    per_cpu_s: float = 0.0
    """Requests per processor second of the whole tree."""
    per_second: float = 0.0
    p50_ms: float = 0.0
    foreign_cpus: float = 0.0
    """Processors that others took meanwhile."""
    why_not: str = ""
    """Why it cannot be chosen; "" where it can."""


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The setting of one peer and model, and why."""

    setting: Setting
    reason: str
    tried: list[Tried] = []


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a round."""

    closed: Closed
    open: Open | None = None
    """None: of this round the closed loop is enough."""
    memory_bytes: int
    """Of the whole tree after the closed loop; pages that its processes share count once."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one cell."""

    peer: str
    cell: Cell
    number: int
    ours: Measured
    theirs: Measured


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """One start of one side, audit on."""

    peer: str
    """Whose round it is; `side` says whose start."""
    side: str
    model: str
    number: int
    cold_s: float
    """From its spawn to its first right prediction."""
    version_s: float | None
    """From asking for another version to its first prediction; None: not measured."""
    refused: int = 0
    """Requests of the poll that were not answered with 2xx meanwhile."""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """A peer, or a cell of it, that has no figure, and why."""

    peer: str
    """Beside whom it was measured; `side` says whose failure it was."""
    what: str
    """A cell's text, or what else was done."""
    why: str
    last_lines: str = ""
    side: str = ""
    """By name; "": not known, or both."""
    wrong: bool = False
    """An answer was wrong, or could not be read."""

    @property
    def is_wrong(self) -> bool:
        """`wrong`; of older results, which have neither that nor a side, what they say."""
        ended = "ONNX Runtime says" in self.why and "did not answer within" not in self.why
        return self.wrong or (not self.side and ended)


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a round compares, and how they are set."""

    peer: str
    model: str
    theirs: Chosen
    ours: Chosen


class Found(msgspec.Struct, kw_only=True):
    """What a run found."""

    pairs: list[Pair] = []
    rounds: list[Round] = []
    starts: list[Start] = []
    failed: list[Failed] = []


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a peer."""

    title: str
    version: str
    audit: str
    forms: list[str]
    sources: list[Source]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A run, as it is kept in JSON."""

    at: str
    commit: str
    command: str
    machine: report.Machine
    how: How
    quick: bool
    pinned: bool
    """Ours had the peer's workers, and no batching where theirs had none."""
    peers: dict[str, About]
    found: Found

    def title(self, peer: str) -> str:
        """How tables name a peer."""
        return self.peers[peer].title if peer in self.peers else peer
