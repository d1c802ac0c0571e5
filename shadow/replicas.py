"""Shadow versions in memory, and what they answer to logged inputs. Mirror stage; next: the log.

logged inputs -> **replicas** -> shadow events. A version is loaded when the first request is to be answered by it and
let go when no route names it any more. What cannot be answered is told by a code and a reason, never left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gateway.audit.event import Prediction, Shadow, Tensor
from gateway.tensors import to_array, to_bytes
from loaders.errors import ModelError, VersionChanged
from loaders.session import Session, load
from loaders.signature import Signature
from shadow.running import CRASHES_MAX, Running

log = logging.getLogger("tidegate.mirror")

MAX_ROWS = 64
"""Rows of one run."""
RUN_S = 10.0
"""A graph with loops is stopped after so long; others end by themselves."""
FITS_KEPT = 1024
"""Shapes of inputs that were held against a version's signature."""
LIVE = "live"
"""`run` of what follows the log as it grows."""

Load = Callable[[str, str], Session]


class Task(NamedTuple):
    """One prediction to be answered by one version."""

    event: Prediction
    version: str

    @property
    def model(self) -> str:
        """The model's name."""
        assert self.event.model is not None
        return self.event.model.name

    @property
    def of_version(self) -> tuple[str, str, str]:
        """What a run names it by."""
        return self.event.id, self.model, self.version

    @property
    def key(self) -> tuple[str, str, str]:
        """What consumers dedupe the answer on."""
        return self.event.id, self.version, LIVE


class Refusal(NamedTuple):
    """Why a version does not answer."""

    code: str
    reason: str


class Replicas:
    """The sessions of shadow versions.

    Args:
        load_version: from model and version to a session; raises ModelError.
        capture_max_bytes: outputs of a request above this are logged by hash.
        running: told of each run and load before it.

    Threading: one thread; a timer of its own stops runs that do not end.
    """

    def __init__(self, load_version: Load, capture_max_bytes: int, running: Running | None = None) -> None:
        self._load = load_version
        self._running = running
        self._capture_max_bytes = capture_max_bytes
        self._sessions: dict[tuple[str, str], Session | Refusal] = {}
        self._fits: dict[tuple[str, str, Any], Refusal | None] = {}
        self.digests: dict[str, str] = {}
        """tree_sha256 by "model/version", as the workers logged what they loaded."""

    @classmethod
    def of_repository(
        cls, models: Path, providers: Sequence[str], capture_max_bytes: int, running: Running | None = None
    ) -> Replicas:
        """Load from a repository, with one thread a run."""

        def load_version(model: str, version: str) -> Session:
            return load(models, model, version, providers=providers)

        return cls(load_version, capture_max_bytes, running)

    def retain(self, wanted: Collection[tuple[str, str]]) -> None:
        """Let go of every version that is not wanted."""
        for key in [key for key in self._sessions if key not in wanted]:
            self._drop(key)

    def retry(self, models: Iterable[str]) -> None:
        """What of these models failed to load is tried again when it is next asked."""
        tried = set(models)
        for key in [k for k, held in self._sessions.items() if isinstance(held, Refusal) and k[0] in tried]:
            self._drop(key)

    def note_loaded(self, model: str, version: str, tree_sha256: str) -> None:
        """Workers loaded these files: a session of others is loaded anew when it is next asked."""
        self.digests[f"{model}/{version}"] = tree_sha256
        held = self._sessions.get((model, version))
        if isinstance(held, Refusal) or (held is not None and held.bundle.tree_sha256 != tree_sha256):
            self._drop((model, version))

    def answer(self, tasks: Sequence[Task]) -> list[Shadow]:
        """An event for each task, in some order. Cost: the runs; rows of like requests share one."""
        answers: list[Shadow] = []
        groups: dict[tuple[str, str, _Inputs], list[Task]] = {}
        for task in tasks:
            if self._has_crashed(task):
                answers.append(
                    _shadow(task, "failed", code="crashed", reason="it ended the process that ran it")
                )
                continue
            refusal = _unreadable(task.event) or self._outcast(task) or self._refusal(task)
            if refusal is None:
                groups.setdefault((task.model, task.version, _inputs_of(task.event)), []).append(task)
            else:
                answers.append(_shadow(task, "skipped", code=refusal.code, reason=refusal.reason))
        for (model, version, _), group in groups.items():
            session = self._session(model, version)
            assert not isinstance(session, Refusal)
            together = [task for task in group if not self._is_alone(task)]
            batches = [[task] for task in group if self._is_alone(task)]
            for batch in (*batches, *_batches(together, batchable=session.batchable)):
                answers += self._run(session, batch)
        return answers

    def _has_crashed(self, task: Task) -> bool:
        return self._running is not None and self._running.has_crashed(task.of_version)

    def _is_alone(self, task: Task) -> bool:
        return self._running is not None and self._running.is_alone(task.of_version)

    def _outcast(self, task: Task) -> Refusal | None:
        if self._running is None or not self._running.is_out(task.model, task.version):
            return None
        who = f"{task.model}/{task.version}"
        return Refusal(
            "crashed", f"{who} ended the process that ran it {CRASHES_MAX} times: change its route"
        )

    def _marked(
        self, model: str, version: str, ids: Sequence[str]
    ) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._running is None else self._running.of(model, version, ids)

    def _run(self, session: Session, batch: list[Task]) -> list[Shadow]:
        try:
            with self._marked(batch[0].model, batch[0].version, [task.event.id for task in batch]):
                outputs = _outputs(session, [task.event for task in batch])
            return [
                _shadow(task, "done", outputs=self._captured(tensors), tree_sha256=session.bundle.tree_sha256)
                for task, tensors in zip(batch, outputs, strict=True)
            ]
        except Exception as exc:  # noqa: BLE001  whatever ONNX Runtime raises is the version's answer
            if len(batch) > 1:
                # One of them cannot be answered; the others can.
                return [answer for task in batch for answer in self._run(session, [task])]
            text = (str(exc).splitlines() or [type(exc).__name__])[0][:300]
            code = "deadline_exceeded" if "terminate" in text.lower() else "inference_failed"
            return [_shadow(batch[0], "failed", code=code, reason=text)]

    def _captured(self, tensors: list[Tensor]) -> list[Tensor]:
        if sum(len(tensor.data or b"") for tensor in tensors) <= self._capture_max_bytes:
            return tensors
        return [
            Tensor(t.name, t.datatype, t.shape, None, hashlib.sha256(t.data or b"").hexdigest())
            for t in tensors
        ]

    def _refusal(self, task: Task) -> Refusal | None:
        session = self._session(task.model, task.version)
        if isinstance(session, Refusal):
            return session
        # Rows do not matter to a batchable version; to others every dimension does.
        rows = () if session.batchable else tuple(tensor.shape[:1] for tensor in task.event.inputs)
        key = (task.model, task.version, (_inputs_of(task.event), rows))
        if key not in self._fits:
            found = _misfit(session.signature, task)
            if found is not None and not any(self._fits.values()):
                log.warning("shadow_does_not_fit", extra={"model": task.model, "why": found.reason})
            if len(self._fits) >= FITS_KEPT:
                self._fits.clear()
            self._fits[key] = found
        return self._fits[key]

    def _session(self, model: str, version: str) -> Session | Refusal:
        key = (model, version)
        if key not in self._sessions:
            self._sessions[key] = held = self._opened(model, version)
            what = {"model": model, "version": version}
            if isinstance(held, Refusal):
                log.warning("shadow_not_loaded", extra={**what, "why": held.reason})
            else:
                log.info("shadow_loaded", extra={**what, "load_ms": held.load_ms})
        return self._sessions[key]

    def _opened(self, model: str, version: str) -> Session | Refusal:
        try:
            with self._marked(model, version, [""]):
                session = self._load(model, version)
        except VersionChanged as exc:
            return Refusal("bundle_changed", str(exc))
        except (ModelError, OSError) as exc:
            return Refusal("not_loaded", str(exc))
        logged = self.digests.get(f"{model}/{version}")
        if logged not in {None, session.bundle.tree_sha256}:
            session.close()
            return Refusal(
                "bundle_changed",
                f"{model}/{version}: the gateway runs files {str(logged)[:12]},"
                f" the repository holds {session.bundle.tree_sha256[:12]}: load the version again",
            )
        return session

    def _drop(self, key: tuple[str, str]) -> None:
        held = self._sessions.pop(key)
        self._fits = {fit: found for fit, found in self._fits.items() if fit[:2] != key}
        if not isinstance(held, Refusal):
            held.close()
            log.info("shadow_unloaded", extra={"model": key[0], "version": key[1]})


_Inputs = tuple[tuple[str, str, tuple[int, ...]], ...]
"""(name, datatype, shape without the first dimension) of every input."""


def _inputs_of(event: Prediction) -> _Inputs:
    return tuple((tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in event.inputs)


def _unreadable(event: Prediction) -> Refusal | None:
    if event.redacted:
        return Refusal("redacted", "cells of the logged inputs are redacted: they are not what was scored")
    if event.capture != "full" or any(tensor.data is None for tensor in event.inputs):
        return Refusal(
            "hash",
            "inputs are logged by hash only: above audit.capture_max_bytes, and more than a record of the gateway's"
            " ring takes (audit.ring_bytes)",
        )
    return None


def _misfit(signature: Signature, task: Task) -> Refusal | None:
    """Whether the logged inputs are what a version takes; names both where they differ."""
    given = {tensor.name: tensor for tensor in task.event.inputs}
    taken = {spec.name: spec for spec in signature.inputs}
    assert task.event.model is not None
    who = f"version {task.event.model.version}", f"version {task.version}"
    if set(given) != set(taken):
        names = ", ".join(sorted(given)), ", ".join(sorted(taken))
        return Refusal("signature", f"{who[0]} was given inputs {names[0]}; {who[1]} takes {names[1]}")
    for name, tensor in given.items():
        spec = taken[name]
        fits = len(spec.shape) == len(tensor.shape) and all(
            declared in {-1, found} for declared, found in zip(spec.shape, tensor.shape, strict=True)
        )
        if spec.datatype != tensor.datatype or not fits:
            text = (
                f"input {name}: {who[0]} was given {tensor.datatype} {list(tensor.shape)};"
                f" {who[1]} takes {spec.datatype} {list(spec.shape)}"
            )
            return Refusal("signature", text)
    return None


def _batches(tasks: list[Task], *, batchable: bool) -> Iterator[list[Task]]:
    """Tasks that run together: up to MAX_ROWS rows, a larger request alone."""
    batch: list[Task] = []
    rows = 0
    for task in tasks:
        counts = {tensor.shape[0] for tensor in task.event.inputs} if batchable else set()
        more = counts.pop() if len(counts) == 1 else MAX_ROWS
        if batch and rows + more > MAX_ROWS:
            yield batch
            batch, rows = [], 0
        batch.append(task)
        rows += max(more, 1)
    if batch:
        yield batch


def _outputs(session: Session, events: list[Prediction]) -> list[list[Tensor]]:
    """Run the rows of all events at once; each event's own part of the outputs."""
    rows = [event.inputs[0].shape[0] for event in events] if len(events) > 1 else []
    feeds: dict[str, Any] = {}
    for tensors in zip(*(event.inputs for event in events), strict=True):
        first = tensors[0]
        shape = (sum(rows), *first.shape[1:]) if len(events) > 1 else first.shape
        data = b"".join(tensor.data or b"" for tensor in tensors)
        feeds[first.name] = to_array(first.datatype, data, shape, first.name)
    arrays = _bounded(session, feeds)
    names = [spec.name for spec in session.signature.outputs]
    types = [spec.datatype for spec in session.signature.outputs]
    if len(events) == 1:
        return [[_tensor(*of) for of in zip(names, types, arrays, strict=True)]]
    found: list[list[Tensor]] = []
    row = 0
    for n in rows:
        cut = [array[row : row + n] for array in arrays]
        found.append([_tensor(*of) for of in zip(names, types, cut, strict=True)])
        row += n
    return found


def _bounded(session: Session, feeds: dict[str, Any]) -> list[Any]:
    """Run; a graph that may loop is stopped after RUN_S."""
    if session.inline_allowed:
        return session.run(feeds)
    options = session.new_run_options()
    timer = threading.Timer(RUN_S, lambda: setattr(options, "terminate", True))
    timer.start()
    try:
        return session.run(feeds, run_options=options)
    finally:
        timer.cancel()
        timer.join()


def _tensor(name: str, datatype: str, array: Any) -> Tensor:
    return Tensor(name, datatype, tuple(array.shape), to_bytes(array))


def _shadow(task: Task, kind: str, **facts: Any) -> Shadow:
    return Shadow(
        kind=kind,
        derived_from=task.event.id,
        version=task.version,
        run=LIVE,
        at_ns=time.time_ns(),
        **facts,
    )


def oversized(answer: Shadow, reason: str) -> Shadow:
    """In the place of an answer that no frame of the log takes."""
    return Shadow(
        kind="skipped",
        derived_from=answer.derived_from,
        version=answer.version,
        run=answer.run,
        at_ns=answer.at_ns,
        code="oversized",
        reason=reason,
    )
