"""Catalog: which models and cells a comparison has, and the repositories that they are served from.

Headline cells are those that a reader looks at first: they get more rounds, and a quick run has no others.
"""

from __future__ import annotations

from pathlib import Path

from bench.cases.vision import write_squeezenet
from bench.models import write_mlp, write_trees
from bench.peers.peer import Cell, Form, Peer

MODELS = ("mlp", "trees", "squeezenet")
FORMS: tuple[Form, ...] = ("json", "binary")
ROWS = (1, 8, 64)
HEADLINE = (
    Cell("mlp", "json", 1, True),
    Cell("mlp", "binary", 64, True),
    Cell("trees", "json", 8, True),
    Cell("squeezenet", "binary", 1, True),
)
CALIBRATED = {cell.model: cell for cell in HEADLINE}
"""The cell whose figure chooses a model's setting; audit off there."""
HEADLINE_ROUNDS = 11
OTHER_ROUNDS = 3
QUICK_ROUNDS = 3


def write(repository: Path, model: str, version: str = "1", seed: int = 1) -> Path:
    """A version of a model into a repository; returns its file.

    Raises:
        ConfigInvalid: a package that makes it is not installed.
    """
    if model == "mlp":
        return write_mlp(repository, version, seed)
    if model == "trees":
        return write_trees(repository, version, seed)
    return write_squeezenet(repository, version)[0]


def cells(model: str, peer: Peer, *, headline_only: bool = False) -> list[Cell]:
    """The cells of a model that a peer can be measured in, headline first."""
    every = [
        Cell(model, form, rows, audit)
        for audit in (True, False)
        for form in FORMS
        for rows in (ROWS if model != "squeezenet" else (1,))
    ]
    first = [cell for cell in HEADLINE if cell.model == model]
    chosen = first if headline_only else first + [cell for cell in every if cell not in first]
    return [cell for cell in chosen if is_offered(cell, peer)]


def is_offered(cell: Cell, peer: Peer) -> bool:
    """Whether a peer has that form at all. A peer without an audit is compared all the same: ours has it on."""
    return cell.form in peer.forms


def rounds_of(cell: Cell, *, quick: bool, given: int | None) -> int:
    """How many rounds a cell gets."""
    if given is not None:
        return given
    if quick:
        return QUICK_ROUNDS
    return HEADLINE_ROUNDS if cell in HEADLINE else OTHER_ROUNDS
