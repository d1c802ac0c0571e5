"""Asking: what is sent to a peer, and whether what comes back is right.

The values of request number i follow from (seed, i) and are the same for every peer; each adapter puts them into its
product's own form. **Asked** holds the whole requests of one cell for wrk and for the open loop, and compares replies
with ONNX Runtime's own answers after the load.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import loaders  # noqa: F401  (turns ONNX Runtime's telemetry off before it is imported)
from bench.check import TOLERANCE, Kept
from bench.peers.onnx_file import signature_of
from bench.peers.peer import Arrays, Form, Peer
from bench.peers.posting import Answer
from bench.requests import Requests, Target, Tensor

HELD_BYTES_MAX = 64 << 20
"""Bytes of all requests of a cell; where 10,000 take more, there are fewer."""
DISTINCT = 10_000

_U32 = struct.Struct("<I")


def session(model_file: Path) -> Any:
    """ONNX Runtime over a model, on one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(model_file), options, providers=["CPUExecutionProvider"])


@lru_cache(maxsize=32)
def inputs_of(model_file: Path) -> tuple[Tensor, ...]:
    """A model's inputs; -1 as first size takes any count of rows. Cost: loads the model once."""
    return tuple(Tensor(one.name, one.datatype, tuple(one.shape)) for one in signature_of(model_file).inputs)


def feeds_of(model_file: Path, rows: int, number: int, seed: int = 1) -> Arrays:
    """What request `number` asks of a model."""
    return _made(model_file, rows, seed).feeds(number)


@lru_cache(maxsize=8)
def _made(model_file: Path, rows: int, seed: int) -> Requests:
    return Requests(Target("model", inputs_of(model_file), rows), count=1, seed=seed)


class WrongAnswer(ValueError):
    """A reply that is not what ONNX Runtime says, or that cannot be read."""


class Asked:
    """The requests of one cell in one peer's form; all of them distinct.

    Args:
        model_file: what values are made for and replies compared with.
        count: at most so many; fewer where they would take over 64 MiB.
    """

    def __init__(
        self, peer: Peer, model: str, model_file: Path, *, form: Form, rows: int,
        count: int = DISTINCT, seed: int = 1,
    ) -> None:  # fmt: skip
        self._peer = peer
        self._model_file = model_file
        self._rows = rows
        self._seed = seed
        self.parts: list[tuple[bytes, ...]] = []
        held = 0
        while len(self.parts) < count and held < HELD_BYTES_MAX:
            whole = peer.message(model, self.feeds(len(self.parts)), form).whole()
            self.parts.append((whole,))
            held += len(whole)

    def __len__(self) -> int:
        return len(self.parts)

    def feeds(self, number: int) -> Arrays:
        """What request `number` asks."""
        return feeds_of(self._model_file, self._rows, number, self._seed)

    def write(self, path: Path) -> None:
        """Write them for wrk's Lua: no shared tails, then per request 0 and the whole of it."""
        with path.open("wb") as file:
            file.write(_U32.pack(0))
            for (whole,) in self.parts:
                file.write(_U32.pack(0) + _U32.pack(len(whole)) + whole)

    def check(self, kept: Iterable[Kept]) -> int:
        """Compare replies with ONNX Runtime; returns how many there were.

        Raises:
            WrongAnswer: naming the first request whose answer differs, or cannot be read.
        """
        ran, count = session(self._model_file), 0
        for reply in kept:
            demand_right(self._peer, ran, self.feeds(reply.number % len(self.parts)), _answer(reply))
            count += 1
        return count


def _answer(kept: Kept) -> Answer:
    lines = kept.head.decode("latin-1").split("\r\n")[1:]
    named = (line.partition(":") for line in lines if line)
    return Answer(200, {name.strip().lower(): value.strip() for name, _, value in named}, kept.body)


def demand_right(peer: Peer, ran: Any, feeds: Arrays, answer: Answer) -> None:
    """Demand what ONNX Runtime says for the same inputs; "" names the first output.

    Args:
        ran: the session of `session`.

    Raises:
        ValueError: the reply is no 2xx; WrongAnswer where it is one.
    """
    if not 200 <= answer.status < 300:
        msg = f"{peer.name} answered {answer.status}: {answer.body[:300]!r}; expected a prediction"
        raise ValueError(msg)
    try:
        outputs = peer.outputs(answer.headers, answer.body)
    except Exception as exc:
        msg = f"{peer.name}: a reply cannot be read ({exc!r}): {answer.body[:300]!r}"
        raise WrongAnswer(msg) from exc
    names = [output.name for output in ran.get_outputs()]
    # Some products do not name what they answer: then it is the first output.
    outputs = {name or names[0]: array for name, array in outputs.items()}
    expected = dict(zip(names, ran.run(names, dict(feeds)), strict=True))
    if not outputs or not set(outputs) <= set(names):
        msg = f"{peer.name} answered outputs {sorted(outputs)}; expected some of {names}"
        raise WrongAnswer(msg)
    for name, mine in outputs.items():
        theirs = np.asarray(expected[name])
        if mine.size != theirs.size or not np.allclose(
            mine.reshape(theirs.shape), theirs, TOLERANCE, TOLERANCE, equal_nan=True
        ):
            msg = f"{peer.name}: output {name} is {mine}, ONNX Runtime says {theirs}"
            raise WrongAnswer(msg)
