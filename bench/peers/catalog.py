"""Catalog: which models and cells a comparison has, and the repositories that they are served from.

Headline cells are those that a reader looks at first: they get more rounds, and a quick run has no others.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from bench.models import write_mlp, write_squeezenet, write_trees
from bench.peers.peer import Cell, Form, Peer

MODELS = ("mlp", "trees", "squeezenet")
FORMS: tuple[Form, ...] = ("json", "binary")
ROWS = (1, 8, 64)
HEADLINE = (
    Cell("mlp", "json", 1, True),
    Cell("mlp", "json", 1, False),
    Cell("mlp", "binary", 64, True),
    Cell("trees", "json", 8, True),
    Cell("squeezenet", "binary", 1, True),
)
CALIBRATED = {
    "mlp": Cell("mlp", "json", 1, False),
    "trees": Cell("trees", "json", 8, False),
    "squeezenet": Cell("squeezenet", "binary", 1, False),
}
"""The cell whose figure chooses a model's setting."""
GOALS = {
    "triton": 5.0,
    "litserve": 60.0,
    "mlserver": 60.0,
    "bentoml": 60.0,
    "ray-serve": 60.0,
    "onnxruntime-server": 6.0,
}
"""What our requests per CPU second are to be over a peer's, single rows of the MLP as JSON."""
LOGS_WHOLE = frozenset(("triton",))
"""Peers whose log has every tensor whole; ours, and user code in the others, has those above 64 KiB by digest."""
LARGE = frozenset(("squeezenet",))
"""Models whose tensors are above 64 KiB."""
GOAL_CELLS = HEADLINE[:2]
HEADLINE_ROUNDS = 11
OTHER_ROUNDS = 3
QUICK_ROUNDS = 3
ROUNDS_A_START = 6
"""Of a cell; later ones are of another start of both servers."""
HEADLINE_OPENS = 3
OTHER_OPENS = 1
"""Of each start: so many rounds offer both sides the same load, too; the closed loops are what the others are for."""


def write(repository: Path, model: str, version: str = "1", seed: int = 1) -> Path:
    """A version of a model into a repository, whole before it is seen; returns its file.

    Raises:
        ConfigInvalid: a package that makes it is not installed.
    Cost: trees are trained for some seconds, once in a process.
    """
    directory = repository / model / version
    part = repository / model / f".{version}"
    part.mkdir(parents=True)
    (part / "model.onnx").write_bytes(_made(model, seed))
    part.rename(directory)
    return directory / "model.onnx"


@cache
def _made(model: str, seed: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tidegate-model-") as scratch:
        place = Path(scratch)
        if model == "squeezenet":
            return write_squeezenet(place).read_bytes()
        return (write_mlp if model == "mlp" else write_trees)(place, seed=seed).read_bytes()


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


def has_open(cell: Cell, number: int) -> bool:
    """Whether a round of a cell, counted from 0, has an open loop beside the closed one."""
    return number % ROUNDS_A_START < (HEADLINE_OPENS if cell in HEADLINE else OTHER_OPENS)
