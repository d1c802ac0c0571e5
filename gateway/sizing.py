"""Sizing: what requests take in a frame, reckoned before it is made, and never too low. recording asks.

What the ring cannot take would leave its requests without a record.
"""

from __future__ import annotations

from typing import Any

EVENT_BYTES = 1024
"""More than a request takes in a frame beside its tensors, id and parameters: caller, route, stages."""
DIGEST_BYTES = 70
"""A digest, or its absence, in a column."""
FRAME_BYTES = 4096
"""More than a run's own fields take."""
BESIDE_BYTES = 32_768
"""More than one request takes beside its tensors, whatever its id, parameters and names."""


def held_bytes(joined: list[bytes], outputs: list[Any]) -> int:
    """What arrays of a run hold: texts as little as they can take."""
    return sum(map(len, joined)) + sum([array.nbytes for array in outputs])


def tensor_bytes(batch: Any, outputs: list[Any]) -> list[int]:
    """Each request's inputs and outputs in binary form."""
    rows = batch.rows or 1
    per_row = sum([a.nbytes // rows for a in outputs if a.dtype != object])
    sizes = [sum(map(len, i.inputs)) + per_row * i.rows for i in batch.inferences]
    for array in outputs:
        if array.dtype == object:
            texts = [4 + len(str(value).encode()) for value in array.ravel()]
            start = 0
            for k, inference in enumerate(batch.inferences):
                end = start + len(texts) // rows * inference.rows
                sizes[k] += sum(texts[start:end])
                start = end
    return sizes


def room_of(version: Any, frame_max_bytes: int) -> int:
    """What a frame has for the requests of a version's run."""
    return frame_max_bytes - FRAME_BYTES - int(version.named_bytes)


def out_bytes(batch: Any, inference: Any) -> int:
    """A request's outputs, texts as little as they can take: those are reckoned on the loop."""
    return sum([a.nbytes // (batch.rows or 1) for a in batch.outputs]) * inference.rows
