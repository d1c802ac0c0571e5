"""The tally: what the events between two cuts of the log add up to, in whatever order they are read. Pure.

feed -> **tally** -> watch. Sources are read side by side, so two readers of one log see its events in other orders.
Everything here is a sum or a set that is sorted before use: the same cuts give the same tally, which is what makes a
decision replayable.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.audit.event import Control, Event, Feedback, Gap, Heartbeat, Prediction, Tensor
from gateway.audit.feed import Hole
from shadow.harm import MICRO
from shadow.labels import Label
from shadow.outputs import Judged, OutputReader

EXPERIMENT = frozenset(("weight", "fallback", "retry"))
"""Reasons under which a request was drawn by weight: what is pinned or forced proves nothing about an arm."""


class ArmKey(NamedTuple):
    """Requests that were drawn alike: one variant at one effective weight in one revision."""

    model: str
    revision: int
    assigned: str
    weight_bp: int


class VersionKey(NamedTuple):
    """A version as it answered, by digest."""

    model: str
    version: str
    tree_sha256: str


class Answered(NamedTuple):
    """One answered request; `arm` is None outside of experiments."""

    id: str
    at_ns: int
    rows: int
    revision: int
    arm: ArmKey | None
    outputs: tuple[Tensor, ...]


class ArmTally:
    """Counts of one arm, in micro-requests."""

    __slots__ = ("failed", "nonfinite", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.nonfinite = 0


class Tally:
    """Sums of one tick.

    Args:
        clock: "log" or "event": which time of a prediction counts.

    Threading: one thread. Memory: the outputs of one tick.
    """

    def __init__(self, clock: str) -> None:
        self._by_event_time = clock == "event"
        self.arms: dict[ArmKey, ArmTally] = {}
        self.answered: dict[VersionKey, list[Answered]] = {}
        self.controls: list[Control] = []
        self.labels: list[Label] = []
        self.label_models: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.missing: list[str] = []
        self.revisions: set[tuple[str, int]] = set()
        self._times: list[int] = []

    def take(self, event: Event) -> None:
        """Add one event."""
        match event:
            case Prediction():
                self._prediction(event)
            case Control():
                self.controls.append(event)
            case Feedback():
                self._feedback(event)
            case Gap():
                self.missing.append(f"{event.source}-{event.epoch:08x} {event.from_seq}..{event.to_seq}")
            case Heartbeat() if not self._by_event_time:
                self._times.append(event.at_ns)
            case _:
                pass

    def take_hole(self, hole: Hole) -> None:
        """Add numbers that the log should hold and does not."""
        self.missing.append(f"{hole.source:016x}-{hole.epoch:08x} {hole.from_seq}..{hole.to_seq}")

    @property
    def time_ns(self) -> int:
        """The median time of the tick's events, 0 without any: no single event moves the clock."""
        times = sorted(self._times)
        return times[len(times) // 2] if times else 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing came that a verdict could rest on."""
        return not (self.counts or self.controls or self.labels or self.missing)

    def _prediction(self, event: Prediction) -> None:
        self.counts[event.kind] += event.count
        if event.kind not in {"done", "failed"} or event.route is None or event.model is None:
            return
        route, model = event.route, event.model
        at_ns = event.received_ns
        if self._by_event_time:
            given = (event.parameters or {}).get("event_time_ns")
            at_ns = given if type(given) is int and given > 0 else 0
        if at_ns:
            self._times.append(at_ns)
        arm = None
        if route.reason in EXPERIMENT and route.assigned is not None and route.weight_bp is not None:
            arm = ArmKey(model.name, route.revision, route.assigned, route.weight_bp)
            self.revisions.add((model.name, route.revision))
            tally = self.arms.get(arm)
            if tally is None:
                tally = self.arms[arm] = ArmTally()
            tally.requests += MICRO
            if event.kind == "failed":
                tally.failed += MICRO
            elif "nonfinite" in event.degraded:
                tally.nonfinite += MICRO
        if event.kind == "done" and model.version is not None:
            key = VersionKey(model.name, model.version, model.tree_sha256 or "")
            answered = Answered(event.id, at_ns, event.rows, route.revision, arm, tuple(event.outputs))
            self.answered.setdefault(key, []).append(answered)

    def _feedback(self, event: Feedback) -> None:
        self.counts[event.kind] += 1
        if event.kind != "label":
            return
        self.label_models.add(event.model)
        for place, label in enumerate(event.labels):
            value = label.get("value")
            if not isinstance(value, bool | int | float) or not math.isfinite(value):
                self.counts["label_wrong_type"] += 1
                continue
            at_ns = int(label.get("at_ns") or event.at_ns)
            row = int(label.get("row") or 0)
            self.labels.append(Label((at_ns, event.id, place), str(label.get("id")), row, float(value)))


class Scored(NamedTuple):
    """An answered request and what its outputs say, a value a row."""

    answered: Answered
    scores: NDArray[np.float64]
    classes: NDArray[np.int64] | None


def scored(answered: list[Answered], reader: OutputReader) -> Iterator[Scored]:
    """Read the outputs of many requests to one version; those logged by hash are left out.

    Requests whose outputs are alike are read together: one call for all rows.
    """
    alike: dict[object, list[Answered]] = {}
    for each in answered:
        if any(tensor.data is None for tensor in each.outputs):
            continue
        shape = tuple((t.name, t.datatype, t.shape[1:], t.shape[:1] == (each.rows,)) for t in each.outputs)
        joinable = all(is_batched for *_, is_batched in shape)
        alike.setdefault(shape if joinable else each.id, []).append(each)
    for group in alike.values():
        rows = sum(each.rows for each in group)
        tensors = group[0].outputs
        if len(group) > 1:
            tensors = tuple(
                Tensor(
                    name=tensor.name,
                    datatype=tensor.datatype,
                    shape=(rows, *tensor.shape[1:]),
                    data=b"".join(each.outputs[i].data or b"" for each in group),
                )
                for i, tensor in enumerate(tensors)
            )
        try:
            judged: Judged = reader.judge(tensors, rows)
        except ValueError:
            # Not what the bundle declares: there is no score, and failures are counted all the same.
            continue
        at = 0
        for each in group:
            part = slice(at, at + each.rows)
            yield Scored(each, judged.scores[part], None if judged.classes is None else judged.classes[part])
            at += each.rows
