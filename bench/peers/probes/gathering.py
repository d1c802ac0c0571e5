"""Gathering: what the probes have seen so far, so that whoever is cut, or runs out of disk, keeps what is done.

features and loss ask, one product after the other -> **gathering** -> command prints and writes it, whole or in part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from bench import report
from bench.peers.peer import Peer, Say
from bench.peers.probes import loss as loss_
from bench.peers.probes.started import Probe
from bench.peers.probes.table import Column, Seen, Table


class Made(msgspec.Struct, frozen=True):
    """What made a table."""

    commit: str
    """Of the tree when it began."""
    command: str
    """Without places on this machine."""

    def text(self, partial: str) -> str:
        """As a page has it behind date and machine."""
        whole = f"commit {self.commit or 'unknown'}, `{self.command}`"
        return f"{whole}; **in part: {partial}**" if partial else whole


class Features(Table, frozen=True, kw_only=True):
    """The feature table and what made it."""

    commit: str = ""
    command: str = ""
    partial: str = ""
    """Why it is not whole; "" where it is."""


class Losses(loss_.Losses, frozen=True, kw_only=True):
    """The counts and what made them."""

    made: str = ""
    commit: str = ""
    command: str = ""
    partial: str = ""
    """Why they are not whole; "" where they are."""

    def markdown(self) -> str:
        """As a page has them."""
        return f"{self.made}\n\n{loss_.markdown(self.losses)}"


AskOne = Callable[[Peer], tuple[Column, Iterable[tuple[Probe, Seen]]]]
"""A product's column, and what its probes see, one after the other."""


class AskedFeatures:
    """Asks every product, a probe after the other.

    Args:
        empty: the table without products.
        made: what made the table.
        progress: told how many of how many cells are done.
    """

    def __init__(
        self, empty: Table, made: Made, progress: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        self.progress = progress
        self._empty, self._made = empty, made
        self._columns: list[Column] = []
        self._cells: dict[str, dict[str, Seen]] = {row.name: {} for row in empty.rows}
        self._done = self._count = 0

    def ask(self, peers: Sequence[Peer], ask_one: AskOne, say: Say) -> None:
        """Ask them all; what was seen stays here, however this ends."""
        self._count = len(peers) * len(self._cells)
        for place, peer in enumerate(peers, 1):
            column, cells = ask_one(peer)
            self._columns.append(column)
            for probe, seen in cells:
                self._cells[probe.name][peer.name] = seen
                say(f"{peer.name}: {probe.name}: {seen.answer}{': ' + seen.seen if seen.seen else ''}"[:200])
                self._tell(self._done + 1)
            self._tell(place * len(self._cells))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was seen yet."""
        return not self._done

    def _tell(self, done: int) -> None:
        self._done = done
        self.progress(done, self._count)

    def found(self, ended: str = "") -> Features:
        """What there is.

        Args:
            ended: why it is not all; "" where it is.
        """
        partial = f"{ended} after {self._done} of {self._count} cells" if ended else ""
        rows = tuple(msgspec.structs.replace(row, cells=self._cells[row.name]) for row in self._empty.rows)
        text = f"{self._empty.made}; {self._made.text(partial)}"
        return Features(
            tuple(self._columns), rows, text, commit=self._made.commit, command=self._made.command, partial=partial
        )  # fmt: skip


class AskedLosses:
    """Counts every product's losses, one after the other.

    Args:
        when: date and loads, as the page has them.
    """

    def __init__(self, when: str, made: Made) -> None:
        self._when, self._made = when, made
        self._found: list[loss_.Loss] = []
        self._count = 0

    def ask(self, peers: Sequence[Peer], say: Say, *, requests: int, outage_s: float) -> None:
        """Count them all; what was counted stays here, however this ends."""
        self._count = len(peers)
        for peer in peers:
            self._found += loss_.measure_all([peer], say, requests=requests, outage_s=outage_s)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted yet."""
        return not self._found

    def found(self, ended: str = "") -> Losses:
        """What there is.

        Args:
            ended: why it is not all; "" where it is.
        """
        partial = f"{ended} after {len(self._found)} of {self._count} products" if ended else ""
        text = f"{self._when}; {report.machine().text()}; {self._made.text(partial)}"
        return Losses(
            tuple(self._found), made=text, commit=self._made.commit, command=self._made.command, partial=partial
        )  # fmt: skip
