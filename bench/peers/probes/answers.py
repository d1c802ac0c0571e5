"""Answers: whether each request gets its own answer, in every form and company."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bench.peers.probes.line import Reply
from bench.peers.probes.started import Probe, Started, in_batches_or_not
from bench.peers.probes.table import Seen

GROUP = "Answers"
_AT_ONCE = 400


def in_json(started: Started) -> Seen | None:
    """A JSON request."""
    if "json" not in started.peer.forms:
        return None
    return Seen("yes" if started.is_right(np.array([[1, -2, 0.5, 7]], np.float32), "json") else "no")


def in_binary(started: Started) -> Seen | None:
    """Tensors as raw bytes, in the product's own form."""
    if "binary" not in started.peer.forms:
        return None
    return Seen("yes" if started.is_right(np.array([[1, -2, 0.5, 7]], np.float32), "binary") else "no")


def many_rows(started: Started) -> Seen:
    """A request of 64 rows."""
    x = np.random.default_rng(5).uniform(-3, 3, (64, 4)).astype(np.float32)
    reply = started.ask(x)
    return Seen(
        "yes" if started.version_of(reply, x) == 1 else "no", f"{reply.status}, {len(reply.body)} bytes"
    )


def its_own(started: Started) -> Seen:
    """Distinct requests side by side."""
    rows = [np.array([[i, -i, i / 8, 1]], np.float32) for i in range(_AT_ONCE)]
    return judge(started, rows, started.at_once([started.message(row) for row in rows]))


def its_own_shape(started: Started) -> Seen:
    """Requests of unlike width side by side: nothing may be made one batch of them."""
    rows = [np.full((1 + i % 2, 1 + i % 5), i, np.float32) for i in range(_AT_ONCE)]
    return judge(started, rows, started.at_once([started.message(row) for row in rows]))


def judge(started: Started, rows: list[np.ndarray], replies: list[Reply | OSError]) -> Seen:
    """Whether all are answered, and each by its own."""
    wrong, failures = 0, Counter[str]()
    for row, reply in zip(rows, replies, strict=True):
        try:
            if isinstance(reply, OSError):
                raise reply
            wrong += started.version_of(reply, row) != 1
        except (OSError, ValueError) as exc:
            failures[str(exc)[:120]] += 1
    failed = sum(failures.values())
    said = f"of {len(rows)} requests {failed} failed and {wrong} had another's answer or a wrong one"
    if failures:
        said += f": {failures.most_common(1)[0][0]}"
    return Seen("no" if failed or wrong else "yes", said)


PROBES = (
    Probe(GROUP, "JSON", "a row is answered right in the product's own JSON form", in_json),
    Probe(GROUP, "raw tensors", "a row is answered right in the product's own binary form", in_binary),
    Probe(GROUP, "64 rows", "a request of 64 rows is answered right", many_rows),
    Probe(GROUP, "each its own answer", f"{_AT_ONCE} distinct requests over 32 connections are all answered right",
          in_batches_or_not(its_own)),
    Probe(GROUP, "unlike shapes side by side", f"{_AT_ONCE} requests of five widths and one or two rows over 32"
          " connections are all answered right; partly: with batching off alone", in_batches_or_not(its_own_shape),
          "id_fp32"),
)  # fmt: skip
