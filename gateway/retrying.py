"""Retrying: a request that its canary could not answer goes once more, to the primary; what that says of the canary.

runs (infer) -> **retrying** -> the primary's queue -> runs -> breaker. So a canary that fails costs its users time and
no answers. The client and the log see one request: its record is the primary's run, with `first_try` and, where it was
drawn by weight, the reason `retry`. The canary's counters have it as failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from gateway.batching import Batch, Inference
from gateway.breaker import Breaker, Volume
from gateway.errors import GatewayError
from gateway.head import raised
from gateway.routing import Assignment

NOT_FINITE = "nonfinite"
"""The code of a first try whose answer was not finite; others have their error's."""
KEPT_MAX = 1024


class FirstTry(NamedTuple):
    """What became of a request before it came to the primary."""

    told: dict[str, str]
    """As the record has it: version and code."""
    retries: Retries


class Retries:
    """Where requests go that one canary's version could not answer.

    Args:
        primary: the serving Version, and the name of its variant.
        version: the canary's.
        breakers: by variant that the version serves.
        opened: called with the variant's name and its breaker once that opens.

    Threading: the loop thread alone.
    """

    def __init__(
        self,
        primary: tuple[Any, str],
        version: Any,
        revision: int,
        opened: Callable[[str, Breaker], None],
    ) -> None:
        self.primary, self._name = primary
        self._version = version
        self._revision = revision
        self._opened = opened
        self.breakers: dict[str, Breaker] = {}
        self._kept: dict[int, tuple[Assignment, Assignment]] = {}

    def watch(self, variant: str, known: Breaker | None, now_ns: int) -> Breaker:
        """Count for a variant from now on, or go on with the breaker that it has."""
        if known is None:
            known = Breaker(self._revision, now_ns, self.volume(variant))
        self.breakers[variant] = known
        return known

    def volume(self, variant: str) -> Volume:
        """Totals as the counters have them."""
        done, failed = self._version.counting.variant(variant)
        primary = self.primary
        own, own_failed = primary.counting.variant(self._name)
        # Retries, of whichever canary, are none of the primary's own requests.
        bad = own_failed + primary.not_finite - primary.retried_bad
        return Volume(done + failed, own + own_failed - primary.retried, bad)

    def read(self, now_ns: int) -> None:
        """Let the breakers know how much ran; about once a second."""
        for variant, breaker in self.breakers.items():
            breaker.read(now_ns, self.volume(variant))

    def takes(self, inference: Inference, now_ns: int, frame_max_bytes: int) -> bool:
        """Whether a request that its canary spoiled can go to the primary.

        Not what named its version or variant, what nobody waits for, what has no time left for another run, and what
        the primary would read in another way: its body is not kept.
        """
        assignment, primary = inference.assignment, self.primary
        if (
            assignment.assigned not in self.breakers
            or assignment.served != assignment.assigned
            or inference.sink.disconnected
            or primary.codec is not self._version.codec
            or primary.hung
            or inference.deadline_ns - now_ns < primary.cost.work_ns(primary.queue.rows + inference.rows)
        ):
            return False
        redactor = primary.redactor
        if redactor is not None and redactor.log_bytes(inference.shapes) > frame_max_bytes // 4:
            return False
        if self._version.checks is None and primary.checks is None:
            return True
        # Flags say how inputs stand to the reference of the version that answers.
        flags, inference.flags = inference.flags, ()
        try:
            if primary.checks is not None:
                primary.checks.check(inference)
        except GatewayError:
            inference.flags = flags
            return False
        return True

    def send(self, inference: Inference, code: str) -> None:
        """Queue it with the primary."""
        primary, assignment = self.primary, inference.assignment
        inference.first_try = FirstTry({"version": self._version.version, "code": code}, self)
        inference.assignment = self._again(assignment)
        inference.audit_level = raised(inference.audit_level, primary.least_level)
        inference.digests = ()
        primary.admitted += 1
        primary.publish_admitted()
        primary.awaited += 1
        primary.looks = True
        primary.queue.put(inference)

    def ran(self, *, well: bool) -> None:
        """The primary ran a retry."""
        self.primary.retried += 1
        self.primary.retried_bad += not well

    def answered(self, inference: Inference, now_ns: int) -> None:
        """What the primary answered counts against the canary; what it could not answer either is the request's."""
        assigned = inference.assignment.assigned
        self._version.counting.spoiled()
        breaker = self.breakers[assigned]
        if breaker.count(now_ns, inference.unit or 0, self.volume(assigned)):
            self._opened(assigned, breaker)

    def _again(self, assignment: Assignment) -> Assignment:
        """How it stands in the record: drawn as it was, served by the primary. One object for equal ones."""
        kept = self._kept.get(id(assignment))
        if kept is None or kept[0] is not assignment:
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            # Drawn by a routing key it stays so: keys prove nothing about an arm, also where it fell back.
            reason = "retry" if assignment.reason == "weight" else assignment.reason
            made = msgspec.structs.replace(
                assignment, served=self._name, version=self.primary.version, reason=reason
            )
            kept = self._kept[id(assignment)] = (assignment, made)
        return kept[1]


def spoiled(batch: Batch) -> dict[int, str]:
    """By place in a batch, the codes of requests that its version failed; not of those that ran out of time."""
    error = batch.error
    if error is None:
        return dict.fromkeys(batch.bad or (), NOT_FINITE)
    if batch.terminated or batch.given_up or isinstance(error, GatewayError) or len(batch.inferences) > 1:
        return {}
    return {0: "inference_failed"}


def leave_out(version: Any, batch: Batch, gone: set[int]) -> None:
    """Take requests out of a batch that ran, as if they had not been in it."""
    kept = [index for index in range(len(batch.inferences)) if index not in gone]
    rows: list[int] = []
    at = 0
    for index, inference in enumerate(batch.inferences):
        if index not in gone:
            rows += range(at, at + inference.rows)
        at += inference.rows
    batch.inferences = [batch.inferences[index] for index in kept]
    batch.rows = len(rows)
    bad = batch.bad or ()
    batch.bad = {place for place, index in enumerate(kept) if index in bad}
    if version.batchable:
        batch.outputs = [array[rows] for array in batch.outputs]
    batch.joined = [b"".join([i.inputs[k] for i in batch.inferences]) for k in range(version.inputs)]
    if batch.redactions is not None:
        batch.redactions = [batch.redactions[index] for index in kept]
