"""Table: what probes saw of every product, and how it is shown. Pure.

**features** fills it; the page and the command print it. Cells say what was seen, and nothing adds them up.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec

from bench.peers.peer import Source

Answer = Literal["yes", "partly", "no", "not offered", "not seen"]
"""`not offered`: the product has no way of doing it, by its own pages. `not seen`: it could not be asked here."""
SIGNS: dict[str, str] = {
    "yes": "yes",
    "partly": "partly",
    "no": "**no**",
    "not offered": "–",
    "not seen": "?",
}
SEEN_CHARACTERS = 240
"""Of what was seen a page has so many, unless a row says otherwise."""


def refused_as(status: int) -> Answer:
    """What a refusal by this status is: with a 5xx a client is told that it may ask again."""
    return "yes" if 400 <= status < 500 else "partly" if 500 <= status < 600 else "no"


def without_paths(text: str) -> str:
    """A product's words without this machine's directories: of a path below them the last name is left."""
    places = "|".join(
        re.escape(place) for place in {tempfile.gettempdir(), str(Path.home()), str(Path.cwd())}
    )
    return re.sub(rf"(?:{places})(?:/[\w.@+-]+)*/([\w.@+-]+)", r"…/\1", text)


class Seen(msgspec.Struct, frozen=True):
    """One cell: an answer, what was observed, and the page that says that it is not offered, or why it is so."""

    answer: Answer
    seen: str = ""
    source: Source | None = None
    is_absent: bool = False
    """Of a no: what was to be asked is not there (an address, a page of metrics, a log), so nothing was measured."""

    def text(self, characters: int = SEEN_CHARACTERS) -> str:
        """In one line; of what was seen so many characters."""
        said = " ".join(self.seen.split())
        if len(said) > characters:
            said = said[: characters - 1] + "…"
        page = ""
        if self.source is not None:
            says = "" if said.startswith(self.source.says) else f"{self.source.says}: "
            page = f" ({says}[{self.source.title}]({self.source.address}))"
        return f"{self.answer}{': ' + said if said else ''}{page}"


NO_LOG = Seen("no", "nothing of it logs predictions", is_absent=True)


class Column(msgspec.Struct, frozen=True):
    """One product."""

    name: str
    title: str
    version: str = ""
    unavailable: str = ""
    """Why it could not be asked at all, with its last lines; "" when it could."""


class Row(msgspec.Struct, frozen=True):
    """One question."""

    group: str
    name: str
    asks: str
    """What is done, and what counts as yes."""
    cells: dict[str, Seen] = {}
    """By a product's name."""
    characters: int = SEEN_CHARACTERS
    """Of what was seen of each."""


class Table(msgspec.Struct, frozen=True):
    """All of it."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    made: str = ""
    """When and on what machine."""

    def answer(self, peer: str, name: str) -> Seen:
        """A cell; `not seen` where there is none."""
        for row in self.rows:
            if row.name == name:
                return row.cells.get(peer, _absent(self, peer))
        return Seen("not seen", f"there is no probe {name}")

    def missed(self, peer: str) -> list[Row]:
        """Rows to which a product's answer is not yes."""
        return [row for row in self.rows if self.answer(peer, row.name).answer != "yes"]


def _absent(table: Table, peer: str) -> Seen:
    why = next((column.unavailable for column in table.columns if column.name == peer), "")
    return Seen("not seen", why.split("\n", 1)[0])


def markdown(table: Table) -> str:
    """The table as a page has it: answers by group, below each what was seen."""
    asked = [column for column in table.columns if not column.unavailable]
    versions = ", ".join(f"{column.title} {column.version}" for column in asked)
    absent = [
        f"* **{column.title}** could not be asked: {column.unavailable}".replace("\n", "\n  > ")
        for column in table.columns
        if column.unavailable
    ]
    legend = (
        "`–`: not offered, by the page that is named. `?`: could not be asked here. What partly means stands beside a"
        " row's question. Every other cell is one probe of this run. Servers have one worker unless a row says"
        " otherwise, and batching where they have it; the rest is what a calibration tries first."
    )
    groups = dict.fromkeys(row.group for row in table.rows)
    parts = [table.made, versions, legend, "\n".join(absent), *(_group(table, group) for group in groups)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _group(table: Table, group: str) -> str:
    rows = [row for row in table.rows if row.group == group]
    titles = " | ".join(column.title for column in table.columns)
    lines = [f"### {group}", "", f"| | {titles} |", f"|---|{'---|' * len(table.columns)}"]
    for row in rows:
        cells = (SIGNS[table.answer(column.name, row.name).answer] for column in table.columns)
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    lines += ["", "<details><summary>What was asked, and what was seen</summary>", ""]
    told: dict[str, Source] = {}
    for column in table.columns:
        if not column.unavailable and (source := _told_once(table, column, rows)) is not None:
            told[column.name] = source
            page = f"[{source.title}]({source.address})"
            lines.append(
                f"* {column.title}, where it is not named below: not offered: {source.says} ({page})"
            )
    for row in rows:
        lines.append(f"* **{row.name}**: {row.asks}")
        for column in table.columns:
            cell = table.answer(column.name, row.name)
            is_told = cell.answer == "not offered" and cell.source == told.get(column.name)
            if not column.unavailable and not is_told:
                lines.append(f"  * {column.title}: {cell.text(row.characters)}")
    return "\n".join([*lines, "", "</details>"])


def _told_once(table: Table, column: Column, rows: list[Row]) -> Source | None:
    """The page by which a product does not offer several rows of a group."""
    cells = [table.answer(column.name, row.name) for row in rows]
    sources = Counter(cell.source for cell in cells if cell.answer == "not offered" and cell.source)
    source, times = sources.most_common(1)[0] if sources else (None, 0)
    return source if times > 1 else None
