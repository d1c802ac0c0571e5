"""`tidegate audit replay`: run one logged prediction again, and hold what comes out against what was answered.

log (inputs, digests, runtime) + repository (the same files) -> outputs, bit for bit, or which fact of then is not so
now. The request runs at the place it had in a run of as many rows as it was part of: sums may be ordered by the size of
a run, and by nothing else of its neighbours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.audit.event import Prediction, Tensor
from gateway.cli.failures import Stop
from gateway.tensors import to_array, to_bytes
from loaders import session as sessions
from loaders.errors import ModelError

_RUNTIME = re.compile(
    r"onnxruntime (?P<version>\S+) (?P<provider>\S+) x(?P<threads>\d+)(?: (?P<processor>\S+))?"
)
_NAMED = {
    "version": "ONNX Runtime",
    "provider": "execution provider",
    "threads": "threads of a run",
    "processor": "processor",
}


class Compared(msgspec.Struct, frozen=True):
    """One output: whether its bits are the same, and by how much its values differ at most (None: no numbers)."""

    name: str
    same: bool
    differs_by: float | None = None


class Replayed(msgspec.Struct, frozen=True):
    """What came out.

    Attributes:
        facts: of then that are not so now, each in a line: where bits differ, one of these may be why.
    """

    id: str
    same: bool
    outputs: list[Compared]
    facts: list[str]


def replay(event: Any, models: Path) -> Replayed:
    """Run a prediction again.

    Raises:
        Stop: it cannot be run: it has no inputs or no answer, or its version is not in the repository (any more).
    """
    if not isinstance(event, Prediction) or event.kind != "done" or event.model is None:
        what = f"{event.__struct_config__.tag} ({event.kind})"
        msg = f"{event.id} is a {what}: only a prediction that was answered can be run again"
        raise Stop(msg)
    if event.redacted:
        msg = (
            f"{event.id}: inputs were redacted before they were logged; what the model saw is not in the log"
        )
        raise Stop(msg)
    if any(tensor.data is None for tensor in (*event.inputs, *event.outputs)):
        msg = (
            f"{event.id}: tensors are logged by hash only; where predictions are to be run again raise"
            " audit.capture_max_bytes, set audit.capture in bundle.toml, or send x-tidegate-audit-capture: full"
        )
        raise Stop(msg)
    session = _loaded(event, models)
    feeds = {tensor.name: _placed(tensor, event, batched=session.batchable) for tensor in event.inputs}
    try:
        ran = session.run(feeds)
    except Exception as exc:
        msg = f"{event.id}: the model failed this time: {str(exc).splitlines()[0][:200]}"
        raise Stop(msg) from exc
    row0 = event.batch.row0 if event.batch is not None and session.batchable else 0
    names = [spec.name for spec in session.signature.outputs]
    found = {
        name: array[row0 : row0 + event.rows] if session.batchable else array
        for name, array in zip(names, ran, strict=True)
    }
    outputs = [_compared(tensor, found.get(tensor.name)) for tensor in event.outputs]
    return Replayed(event.id, all(one.same for one in outputs), outputs, _facts(event, session))


def _loaded(event: Prediction, models: Path) -> sessions.Session:
    facts = event.model
    assert facts is not None  # noqa: S101
    ran_on = _RUNTIME.fullmatch(facts.runtime or "")
    try:
        return sessions.load(
            models, facts.name, str(facts.version), intra_op_threads=int(ran_on["threads"]) if ran_on else 1
        )
    except (ModelError, OSError) as exc:
        msg = f"model '{facts.name}' version {facts.version} cannot be loaded from {models}: {exc}"
        raise Stop(msg) from exc


def _placed(tensor: Tensor, event: Prediction, *, batched: bool) -> Any:
    """The tensor where it stood in its run; its neighbours are zeros."""
    assert tensor.data is not None  # noqa: S101
    own = to_array(tensor.datatype, tensor.data, tensor.shape, tensor.name)
    batch = event.batch
    if batch is None or not batched or batch.rows == event.rows:
        return own
    fill: Any = "" if own.dtype == object else 0
    whole = np.full((batch.rows, *own.shape[1:]), fill, own.dtype)
    whole[batch.row0 : batch.row0 + event.rows] = own
    return whole


def _compared(then: Tensor, now: Any) -> Compared:
    if now is None:
        return Compared(then.name, False)
    if tuple(now.shape) == tuple(then.shape) and to_bytes(now) == then.data:
        return Compared(then.name, True)
    assert then.data is not None  # noqa: S101
    before = to_array(then.datatype, then.data, then.shape, then.name)
    if before.dtype == object or before.shape != now.shape:
        return Compared(then.name, False)
    with np.errstate(invalid="ignore"):
        apart = np.abs(before.astype(np.float64) - np.asarray(now).astype(np.float64))
    return Compared(then.name, False, float(np.nanmax(apart, initial=0.0)))


def _facts(event: Prediction, session: sessions.Session) -> list[str]:
    facts = event.model
    assert facts is not None  # noqa: S101
    pairs = [
        ("files of the version (tree_sha256)", facts.tree_sha256, session.bundle.tree_sha256),
        ("its settings (config_sha256)", facts.config_sha256, session.bundle.config_sha256),
    ]
    then, now = _RUNTIME.fullmatch(facts.runtime or ""), _RUNTIME.fullmatch(session.runtime)
    if then is None or now is None:
        pairs.append(("runtime", facts.runtime, session.runtime))
    else:
        pairs += [(name, then[key], now[key]) for key, name in _NAMED.items()]
    if event.batch is not None and event.batch.rows != event.rows and not session.batchable:
        pairs.append(("rows of its run", str(event.batch.rows), str(event.rows)))
    return [f"{name}: then {then or '-'}, now {now or '-'}" for name, then, now in pairs if then != now]
