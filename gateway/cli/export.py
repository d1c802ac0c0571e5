"""`tidegate audit export`: records as a file for people and tools that know nothing of the log.

JSON Lines hold each record whole, as `audit get --json` shows it. Parquet has one row a prediction with its facts in
columns and the tensors as JSON, for notebooks and warehouses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.audit.event import Event, Prediction, Tensor, encode_event
from gateway.audit.spool import EpochPath, epochs, segments, synced_seq
from gateway.cli.failures import Stop
from gateway.cli.screen import print_json_line
from gateway.tensors import to_array

ROWS_MAX = 10_000
GROUP_MAX_CHARS = 32_000_000
"""Rows of a Parquet row group, and characters of their tensors: so much is in memory."""

_PART = ".part"
Sink = Callable[[Event], bool]
"""Takes a record; whether it is one that this form has a place for."""


def suffix_format(path: Path | None, given: str | None) -> str:
    """`jsonl` or `parquet`: as asked, else by the file's name, else `jsonl`."""
    if given is not None:
        return given
    return "parquet" if path is not None and path.suffix == ".parquet" else "jsonl"


@contextmanager
def opened(path: Path | None, form: str) -> Iterator[Sink]:
    """What takes records, one by one; None writes to stdout. A file is there under its name only when it is whole.

    Raises:
        Stop: pyarrow is not installed, Parquet on stdout, or the file cannot be written.
    """
    if path is None:
        if form == "parquet":
            msg = "Parquet needs a file: tidegate audit export predictions.parquet"
            raise Stop(msg)
        yield _print
        return
    if path.exists() and not path.is_file():
        msg = f"{path} is no plain file; expected one, or none for stdout"
        raise Stop(msg)
    part = path.with_name(path.name + _PART)
    try:
        with _parquet(part) if form == "parquet" else _lines(part) as take:
            yield take
        with _told(path):
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _print(event: Event) -> bool:
    print_json_line(encode_event(event, "json"))
    return True


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong with the file; reading the log has errors of its own."""
    try:
        yield
    except OSError as exc:
        msg = f"{str(path).removesuffix(_PART)}: {exc.strerror}"
        raise Stop(msg) from exc


@contextmanager
def _lines(path: Path) -> Iterator[Sink]:
    with _told(path):
        file = open(path, "wb", opener=_private)  # noqa: PTH123, SIM115  pathlib has no opener

    def take(event: Event) -> bool:
        with _told(path):
            file.write(encode_event(event, "json") + b"\n")
        return True

    try:
        yield take
    finally:
        with _told(path):
            file.close()


def _private(path: str, flags: int) -> int:
    # What people sent is in it: as private as the log.
    return os.open(path, flags, 0o600)


@contextmanager
def _parquet(path: Path) -> Iterator[Sink]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        msg = "Parquet needs pyarrow: install tidegate[parquet], or export JSON Lines"
        raise Stop(msg) from None
    text, whole = arrow.string(), arrow.int64()
    schema = arrow.schema(
        [
            ("id", text), ("kind", text), ("received_at", arrow.timestamp("ns", "UTC")),
            ("done_at", arrow.timestamp("ns", "UTC")), ("model", text), ("version", text), ("tree_sha256", text),
            ("assigned", text), ("served", text), ("weight_bp", whole), ("reason", text), ("rows", whole),
            ("status", whole), ("code", text), ("request_id", text), ("principal", text), ("audit", text),
            ("flags", arrow.list_(text)), ("count", whole), ("capture", text), ("redacted", text),
            ("degraded", arrow.list_(text)), ("inputs", text), ("outputs", text),
        ]
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    with _told(path):
        file = open(path, "wb", opener=_private)  # noqa: PTH123, SIM115  pathlib has no opener
        writer = pyarrow.parquet.ParquetWriter(file, schema)
    held = 0

    def flush() -> None:
        with _told(path):
            writer.write_table(arrow.Table.from_pylist(rows, schema))
        rows.clear()

    def take(event: Event) -> bool:
        nonlocal held
        if not isinstance(event, Prediction):
            return False
        rows.append(row := _row(event))
        held += len(row["inputs"]) + len(row["outputs"])
        if len(rows) >= ROWS_MAX or held >= GROUP_MAX_CHARS:
            flush()
            held = 0
        return True

    try:
        yield take
        flush()
    finally:
        with _told(path):
            writer.close()
            file.close()


def _row(event: Prediction) -> dict[str, Any]:
    route, model = event.route, event.model
    return {
        "id": event.id,
        "kind": event.kind,
        "received_at": event.received_ns or None,
        "done_at": event.done_ns,
        "model": None if model is None else model.name,
        "version": None if model is None else model.version,
        "tree_sha256": None if model is None else model.tree_sha256,
        "assigned": None if route is None else route.assigned,
        "served": None if route is None else route.served,
        "weight_bp": None if route is None else route.weight_bp,
        "reason": None if route is None else route.reason,
        "rows": event.rows,
        "status": event.status,
        "code": event.code,
        "request_id": event.request_id,
        "principal": event.principal,
        "audit": event.audit,
        "flags": list(event.flags),
        "count": event.count,
        "capture": event.capture,
        "redacted": None if not event.redacted else msgspec.json.encode(event.redacted).decode(),
        "degraded": list(event.degraded),
        "inputs": _tensors(event.inputs),
        "outputs": _tensors(event.outputs),
    }


def _tensors(tensors: list[Tensor]) -> str:
    """By name: the values, or the digest where there are none; what is not finite as NaN, Infinity, -Infinity."""
    arrays = {tensor.name: _array(tensor) for tensor in tensors}
    values = {
        tensor.name: {"sha256": tensor.sha256} if (array := arrays[tensor.name]) is None else array.tolist()
        for tensor in tensors
    }
    if all(array is None or array.dtype.kind != "f" or np.isfinite(array).all() for array in arrays.values()):
        return msgspec.json.encode(values).decode()
    # JSON has no word for them and would say null, which is a missing value. Python's dialect has (json, pandas).
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def _array(tensor: Tensor) -> Any:
    if tensor.data is None:
        return None
    return to_array(tensor.datatype, tensor.data, tensor.shape, tensor.name)


def held_records(spool: Path) -> float:
    """How many records a spool holds, by its marks and its files' names."""
    return float(sum(_held(epoch) for epoch in epochs(spool)))


def _held(epoch: EpochPath) -> int:
    found = segments(epoch)
    return max(synced_seq(epoch) - found[0][0], 0) if found else 0
