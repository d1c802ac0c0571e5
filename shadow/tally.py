"""The tally: what the events between two cuts of the log add up to, in whatever order they are read. Pure.

feed -> **tally** -> watch. Sources are read side by side, so two readers of one log see its events in other orders.
Everything here is a sum or a set that is sorted before use: the same cuts give the same tally, which is what makes a
decision replayable.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.audit.event import (
    Control,
    EpochClose,
    Event,
    Feedback,
    Gap,
    Heartbeat,
    Prediction,
    RouteFacts,
    Tensor,
)
from gateway.audit.feed import RETENTION, Hole, Skipped
from shadow.harm import MICRO
from shadow.labels import Label
from shadow.outputs import Judged, OutputReader
from shadow.ratio import SPAN_NS, Draw

TIME_MAX_NS = 1 << 62
"""The year 2116: a later time is no time, and sums of times still fit in 64 bits."""
AHEAD_NS = 86_400 * 1_000_000_000
"""An event's own time is at most so far ahead of the gateway's: clocks differ, and dates stand for whole days."""
HEAD_BYTES = 1000
"""What an answered request takes beside its outputs, about."""
SOURCE_CHARS = 16
"""Of an event's id, what names its source."""
_ROW_MAX = 1 << 31
EXPERIMENT = frozenset(("weight", "fallback", "retry"))
"""Reasons under which a request was drawn by weight: what is pinned or forced proves nothing about an arm."""
KEYED = "key"
"""Drawn by a routing key: whoever may choose a key may choose the arm, so it proves nothing unless keys are trusted."""
JUDGED = frozenset(("done", "failed", "refused"))
"""A refused one has a route only where the version that was drawn refused what the primary's signature takes."""
DRAWN = JUDGED | {"cancelled"}
"""What tells that a request was drawn, whatever became of it then."""
OVERLOADED = "overloaded"
"""Depends on load: it says on whom the draw fell, and nothing about a version."""
DEADLINE = "deadline_exceeded"
"""Depends on load and on what the client asked: neither a failure of the version nor a success."""


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
    """One answered request; `arm` is None outside of experiments. `unit` is what was drawn for: of a routing key the
    same each time (`is_keyed`), else the request's own."""

    id: str
    at_ns: int
    received_ns: int
    rows: int
    revision: int
    arm: ArmKey | None
    unit: str
    is_keyed: bool
    outputs: tuple[Tensor, ...]


class ArmTally:
    """Requests of one arm in micro-requests, and by kind of badness the units that were hit, with what they weigh.

    Units, not requests: a sticky caller who sends one bad input again and again proves no more than once.
    """

    __slots__ = ("bad", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.bad: dict[str, dict[str, int]] = {}

    def copy(self) -> ArmTally:
        """One that may go on without this one."""
        other = ArmTally()
        other.requests, other.bad = self.requests, {kind: dict(units) for kind, units in self.bad.items()}
        return other

    def hit(self, kind: str, unit: str, weight: int) -> None:
        """A bad request; of a unit the first one counts."""
        self.bad.setdefault(kind, {}).setdefault(unit, weight)


class Tally:
    """Sums of one tick.

    Args:
        clock: "log" or "event": which time of a prediction counts.
        trusts_keys: whether requests to a model that were drawn by a routing key are part of experiments.

    Threading: one thread. Memory: the outputs of one tick.
    """

    def __init__(self, clock: str, trusts_keys: Callable[[str], bool] = lambda model: False) -> None:
        self._by_event_time = clock == "event"
        self._trusts_keys = trusts_keys
        self.arms: dict[ArmKey, ArmTally] = {}
        self.answered: dict[VersionKey, list[Answered]] = {}
        self.controls: list[Control] = []
        self.labels: list[Label] = []
        self.counts: Counter[str] = Counter()
        self.aborted: dict[str, Counter[tuple[str, str]]] = {}
        """By death of a worker: how many requests of each model and version died with it."""
        self.missing: list[str] = []
        self.held_bytes = 0
        """Of outputs, about."""
        self.draws: dict[str, Counter[Draw]] = {}
        """By model, what was drawn by weight."""
        self.read_ns: dict[str, int] = {}
        """By source, the time up to which it was read."""
        self.drew: set[str] = set()
        """Sources with requests that were drawn by weight."""
        self.closed: set[str] = set()
        """Sources of which an epoch is over."""
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
            case Gap() if event.cause != RETENTION:
                # What retention took was read before, or the feed reports it as a hole.
                self.missing.append(f"{event.source}-{event.epoch:08x} {event.from_seq}..{event.to_seq}")
            case Heartbeat():
                self._note_read(event.id, event.at_ns)
                if not self._by_event_time:
                    self._note_time(event.at_ns)
            case EpochClose():
                self.closed.add(event.source)
            case _:
                pass

    def take_hole(self, hole: Hole) -> None:
        """Add numbers that the log should hold and does not."""
        self.missing.append(f"{hole.source:016x}-{hole.epoch:08x} {hole.from_seq}..{hole.to_seq}")

    def take_skipped(self, skipped: Skipped) -> None:
        """Add records that the topic does not hold any more; which they were is not known."""
        where = f"{skipped.from_offset}..{skipped.to_offset}"
        self.missing.append(f"partition {skipped.partition} offsets {where}")

    @property
    def times(self) -> list[int]:
        """When things happened by the clock, in no order."""
        return self._times

    @property
    def is_empty(self) -> bool:
        """Whether nothing came that a verdict could rest on."""
        return not (self.counts or self.controls or self.labels or self.missing)

    def _prediction(self, event: Prediction) -> None:
        self.counts[event.kind] += event.count
        self._note_read(event.id, event.done_ns)
        if event.kind == "aborted":
            self._aborted(event)
        if event.route is None or event.model is None:
            return
        if event.kind in DRAWN:
            self._drawn(event, event.route, event.model.name)
        if event.kind not in JUDGED or event.code == OVERLOADED:
            return
        route, model = event.route, event.model
        received_ns = event.received_ns if 0 < event.received_ns < TIME_MAX_NS else 0
        at_ns = received_ns
        if self._by_event_time:
            given = (event.parameters or {}).get("event_time_ns")
            is_time = type(given) is int and 0 < given <= received_ns + AHEAD_NS
            at_ns = given if is_time else 0  # type: ignore[assignment]
        if event.kind != "refused":
            self._note_time(at_ns)
        is_keyed = route.reason == KEYED and route.unit_hash is not None
        unit = route.unit_hash if is_keyed and route.unit_hash else event.id
        arm = self._arm(event, route, model.name)
        if arm is not None:
            tally = self.arms.get(arm)
            if tally is None:
                tally = self.arms[arm] = ArmTally()
            tally.requests += MICRO * event.count
            bad = _badness(event)
            if bad is not None:
                # A sum of keyed ones does not tell how many callers they were of.
                tally.hit(bad, unit, MICRO if route.reason == KEYED else MICRO * event.count)
        if event.kind == "done" and model.version is not None and event.rows > 0:
            key = VersionKey(model.name, model.version, model.tree_sha256 or "")
            answered = Answered(
                event.id,
                at_ns,
                received_ns,
                event.rows,
                route.revision,
                arm,
                unit,
                is_keyed,
                tuple(event.outputs),
            )
            self.answered.setdefault(key, []).append(answered)
            self.held_bytes += HEAD_BYTES + sum(len(tensor.data or b"") for tensor in event.outputs)

    def _drawn(self, event: Prediction, route: RouteFacts, model: str) -> None:
        """Note on whom a draw by weight fell; keys are the callers', and pinned and forced ones are no draws."""
        if route.assigned is None or route.weight_bp is None or route.reason not in EXPERIMENT:
            return
        at_ns = event.received_ns or event.done_ns
        if 0 < at_ns < TIME_MAX_NS:
            self.revisions.add((model, route.revision))
            draw = Draw(at_ns // SPAN_NS, route.revision, route.assigned, route.weight_bp)
            self.draws.setdefault(model, Counter())[draw] += event.count
            self.drew.add(event.id[:SOURCE_CHARS])

    def _note_read(self, event_id: str, at_ns: int) -> None:
        source = event_id[:SOURCE_CHARS]
        if at_ns > self.read_ns.get(source, 0):
            self.read_ns[source] = at_ns

    def _note_time(self, at_ns: int) -> None:
        if 0 < at_ns < TIME_MAX_NS:
            self._times.append(at_ns)

    def _aborted(self, event: Prediction) -> None:
        """Requests that died with their worker; which they were is not known, only how many of each version."""
        if event.model is None or event.model.version is None or event.count < 1:
            return
        death, _, _ = event.id.rpartition("-")
        of_death = self.aborted.setdefault(death, Counter())
        of_death[event.model.name, event.model.version] += event.count

    def _arm(self, event: Prediction, route: RouteFacts, model: str) -> ArmKey | None:
        """What a request was drawn for; None where that proves nothing."""
        if route.assigned is None or route.weight_bp is None:
            return None
        if route.reason not in EXPERIMENT and not (route.reason == KEYED and self._trusts_keys(model)):
            return None
        self.revisions.add((model, route.revision))
        if event.code == DEADLINE or (event.first_try or {}).get("code") == DEADLINE:
            return None
        return ArmKey(model, route.revision, route.assigned, route.weight_bp)

    def _feedback(self, event: Feedback) -> None:
        self.counts[event.kind] += 1
        self._note_read(event.id, event.at_ns)
        if not self._by_event_time:
            self._note_time(event.at_ns)
        if event.kind != "label":
            return
        for place, given in enumerate(event.labels):
            label = _label(event, place, given)
            if isinstance(label, str):
                self.counts[label] += 1
            else:
                self.labels.append(label)


def _badness(event: Prediction) -> str | None:
    """What was bad about a request for the variant it was drawn for, though another may have answered it."""
    if event.first_try is not None:
        return "nonfinite" if event.first_try.get("code") == "nonfinite" else "failed"
    if event.kind in {"failed", "refused"}:
        return "failed"
    return "nonfinite" if "nonfinite" in event.degraded else None


def _label(event: Feedback, place: int, given: dict[str, Any]) -> Label | str:
    """A label, or what is wrong with it. Workers take nothing else; other writers of the log might."""
    value, row = given.get("value"), given.get("row", 0)
    try:
        is_number = isinstance(value, bool | int | float) and math.isfinite(value)
    except OverflowError:
        is_number = False
    if not is_number:
        return "label_wrong_type"
    if type(row) is not int or not 0 <= row < _ROW_MAX:
        return "label_wrong_row"
    at_ns = min(max(event.at_ns, 0), TIME_MAX_NS)
    return Label((event.id, place), str(given.get("id")), row, float(value), event.model, at_ns)  # type: ignore[arg-type]


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
        found = _judged(group, reader)
        if found is None and len(group) > 1:
            # One that is not what the bundle declares keeps none of the others.
            for each in group:
                found = _judged([each], reader)
                yield from found or ()
        else:
            yield from found or ()


def _judged(group: list[Answered], reader: OutputReader) -> list[Scored] | None:
    """Requests whose outputs are alike; None where they are not what the bundle declares: there is no score then."""
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
        return None
    found, at = [], 0
    for each in group:
        part = slice(at, at + each.rows)
        found.append(
            Scored(each, judged.scores[part], None if judged.classes is None else judged.classes[part])
        )
        at += each.rows
    return found
