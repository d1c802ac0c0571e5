"""Redaction: what of a request's inputs is recorded where bundle.toml says that a feature must not be.

runs -> **redaction** -> recording. The model has seen the whole input; the record has zeros (or empty text) in the
cells that rules name and says beside them what stood there as far as the rule allows: nothing, a keyed hash, or a
bucket. Digests are taken behind it. Done before a frame is made, so no file, ring or topic ever holds the values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gateway.batching import Inference
from gateway.claims import REDACTION_KEY
from gateway.tensors import pack_strings, string_count, unpack_strings
from loaders.datatypes import NUMPY
from loaders.redact import Cell

DIGEST_BYTES = 16
_ENTRY_BYTES, _VALUE_BYTES = 96, 2 * DIGEST_BYTES + 2
"""More than a rule and one of its values take in the log."""


class Redacted(NamedTuple):
    """What is recorded of one request: its inputs, and for each rule what stood in its cells."""

    inputs: list[bytes]
    said: list[dict[str, Any]]
    log_bytes: int


def read_key(state_dir: Path, name: str = REDACTION_KEY) -> bytes:
    """A key, by default that of hashes, as the supervisor made or found it (`gateway.claims`).

    Raises:
        OSError, ValueError: it is not there (any more), or is no key.
    """
    return bytes.fromhex((state_dir / name).read_text().strip())


class Redactor:
    """The rules of one version.

    Args:
        cells: what they name.
        key: of the hashes, from `read_key`.

    Threading: nothing is kept, any thread. Cost: a copy of each input named, and about two microseconds a hashed cell.
    """

    def __init__(self, cells: Sequence[Cell], key: bytes) -> None:
        self._by_input: dict[int, list[Cell]] = {}
        for cell in cells:
            self._by_input.setdefault(cell.input_index, []).append(cell)
        self._key = key
        self._key_id = hashlib.sha256(b"tidegate redaction key\0" + key).hexdigest()[:8]

    def log_bytes(self, shapes: Sequence[Sequence[int]]) -> int:
        """More than what is said of a request with inputs of these shapes takes in the log. Cost: under a microsecond a
        rule."""
        taken = 0
        for index, cells in self._by_input.items():
            values = prod(shapes[index]) // cells[0].width
            for cell in cells:
                taken += _ENTRY_BYTES + len(cell.rule.input.encode()) + len(cell.rule.feature.encode())
                taken += 0 if cell.rule.how == "drop" else _VALUE_BYTES * values
        return taken

    def made(self, inference: Inference) -> Redacted:
        """What is recorded of a request; the request itself stays as it is."""
        inputs = list(inference.inputs)
        said: list[dict[str, Any]] = []
        for index, cells in self._by_input.items():
            text = cells[0].spec.datatype == "BYTES"
            inputs[index], found = (self._of_text if text else self._of_numbers)(inputs[index], cells)
            for cell, values in zip(cells, found, strict=True):
                rule = cell.rule
                entry: dict[str, Any] = {"input": rule.input, "feature": rule.feature, "how": rule.how}
                if rule.how == "hash":
                    entry["key"] = self._key_id
                if rule.how != "drop":
                    entry["values"] = values
                said.append(entry)
        return Redacted(inputs, said, self.log_bytes(inference.shapes))

    def _of_numbers(self, data: bytes, cells: list[Cell]) -> tuple[bytes, list[list[Any]]]:
        array = np.frombuffer(data, NUMPY[cells[0].spec.datatype]).reshape(-1, cells[0].width).copy()
        found: list[list[Any]] = []
        for cell in cells:
            column = array[:, cell.column]
            if cell.rule.how == "hash":
                found.append([self._hash(cell, value.tobytes()) for value in column])
            elif cell.rule.how == "bucket":
                numbers = column.astype(np.float64)
                places = np.searchsorted(cell.rule.edges, numbers, side="right").tolist()
                lost = np.isnan(numbers).tolist()
                found.append([None if gone else place for place, gone in zip(places, lost, strict=True)])
            else:
                found.append([])
            column[...] = 0
        return array.tobytes(), found

    def _of_text(self, data: bytes, cells: list[Cell]) -> tuple[bytes, list[list[Any]]]:
        texts = unpack_strings(data, string_count(data), cells[0].spec.name)
        found: list[list[Any]] = []
        for cell in cells:
            column = slice(cell.column, None, cell.width)
            hashed = cell.rule.how == "hash"
            found.append([self._hash(cell, text.encode()) for text in texts[column]] if hashed else [])
            texts[column] = [""] * len(texts[column])
        return pack_strings(texts), found

    def _hash(self, cell: Cell, value: bytes) -> str:
        """Keyed BLAKE2b (RFC 7693), of feature and value: equal values of two features cannot be told to be equal."""
        named = f"{cell.rule.input}\0{cell.rule.feature}\0".encode()
        return hashlib.blake2b(named + value, key=self._key, digest_size=DIGEST_BYTES).hexdigest()
