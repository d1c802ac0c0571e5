"""Is traffic split as the route says? Evidence that may be looked at after every tick. Pure.

tally -> **ratio** -> watch. Every other verdict takes the logged weight for the odds of the draw. Where a gateway draws
by other odds than it logs, all of them are wrong, in either direction; so this is asked first, and while the answer is
no nothing is concluded for that model.

Null: each request that was drawn by weight fell on a variant with the probability that its route's revision names. The
evidence is how much better the counts are explained by some other split (a Dirichlet prior around the weights): a
martingale that starts at 1, so it is wrong at the level c with a probability of at most 1/c however often one looks.
Each revision is a test of its own; the k-th of a model has to reach k (k + 1) / alpha, which sums to alpha over all.

What is counted is the variant *assigned*, under all reasons of a draw by weight: whether it was ready, failed, or was
tried again on the primary comes after the draw. A request is counted once those that came with it were read as well,
whatever took how long, by the time up to which each worker's log was read: else a slow variant would seem to get too
little, always or where much is to be caught up on.
(docs/statistics.md)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from shadow.documents import Document

ALPHA = 1e-4
"""A model's route is ever wrongly said to be split otherwise with this probability at most."""
PRIOR = 100.0
"""Requests that the prior is worth."""
SPAN_NS = 10_000_000_000
"""Requests are counted by when they came, to so many ns."""
SETTLED_NS = 40_000_000_000
"""After this all that came together is answered and logged: the longest deadline, and the grace of a run that hangs."""
LOG_CAP = 700.0


class Draw(NamedTuple):
    """Requests that were drawn alike, of one model."""

    span: int
    """Of time, in SPAN_NS since the epoch."""
    revision: int
    assigned: str
    weight_bp: int
    """As logged."""


class Waiting(msgspec.Struct):
    """Requests that came within one span and are not counted yet, by variant assigned."""

    span: int
    revision: int
    counts: dict[str, int] = {}


class Ratio(msgspec.Struct):
    """One model's evidence: of its newest revision with requests that were drawn. Plain integers."""

    revision: int = 0
    tests: int = 0
    """Revisions that were tested, this one included."""
    weights_bp: dict[str, int] = {}
    counts: dict[str, int] = {}
    strays: int = 0
    """Requests that fell on a variant which the revision gives no weight."""
    paused: bool = False
    """Not tested any more: a breaker opened in this revision, or a lease ended."""
    alarmed: bool = False
    since_ns: int = 0
    """Requests that came before are not counted: records of that time are missing."""
    waiting: list[Waiting] = []

    @property
    def requests(self) -> int:
        """Counted in this revision."""
        return sum(self.counts.values())

    @property
    def evidence(self) -> float:
        """E-value against "drawn as the route says"."""
        if self.strays:
            return math.exp(LOG_CAP)
        return evidence(self.counts, self.weights_bp)

    @property
    def needed(self) -> float:
        """What it has to reach."""
        return max(self.tests, 1) * (self.tests + 1) / ALPHA


class Alarm(NamedTuple):
    """Traffic of a model is not split as its route says."""

    model: str
    revision: int
    counts: dict[str, int]
    weights_bp: dict[str, int]
    evidence: float
    needed: float
    says: str


def evidence(counts: Mapping[str, int], weights_bp: Mapping[str, int]) -> float:
    """How much better counts are explained by some other split than by the weights; at most exp(700).

    Args:
        counts: of variants that have a weight.
        weights_bp: their weights; they sum to 10,000.
    """
    total = sum(counts.values())
    log = math.lgamma(PRIOR) - math.lgamma(PRIOR + total)
    for name, weight_bp in weights_bp.items():
        count, share = counts.get(name, 0), weight_bp / 10_000
        if count:
            log += math.lgamma(PRIOR * share + count) - math.lgamma(PRIOR * share) - count * math.log(share)
    return math.exp(min(log, LOG_CAP))


def hold(ratio: Ratio, draws: Mapping[Draw, int], documents: Mapping[int, Document]) -> None:
    """Keep draws of a model until they are old enough to be counted.

    Args:
        documents: the model's revisions.
    """
    held = {(w.span, w.revision): w for w in ratio.waiting}
    for draw, count in sorted(draws.items()):
        document = documents.get(draw.revision)
        if document is None or draw.span * SPAN_NS < ratio.since_ns or draw.revision < ratio.revision:
            continue
        known_bp = _weights_bp(document).get(draw.assigned)
        if known_bp is not None and known_bp != draw.weight_bp:
            # A lease ended: the primary draws for that canary, too, in this worker and from now on.
            pause(ratio, document)
            continue
        waiting = held.get((draw.span, draw.revision))
        if waiting is None:
            waiting = held[draw.span, draw.revision] = Waiting(draw.span, draw.revision)
            ratio.waiting.append(waiting)
        waiting.counts[draw.assigned] = waiting.counts.get(draw.assigned, 0) + count


def pause(ratio: Ratio, document: Document) -> None:
    """Test a revision no more: traffic is not what it says any longer, and rightly so."""
    if document.revision >= ratio.revision:
        begin(ratio, document)
        ratio.paused = True


def forget(ratio: Ratio, at_ns: int) -> None:
    """Records until now are missing: what came until now is left out, since they need not be missing evenly."""
    ratio.waiting, ratio.since_ns = [], at_ns


def begin(ratio: Ratio, document: Document) -> None:
    """Go on to a revision; nothing where it is the one that is tested."""
    if document.revision <= ratio.revision:
        return
    ratio.revision, ratio.weights_bp, ratio.counts = document.revision, _weights_bp(document), {}
    ratio.strays, ratio.paused, ratio.alarmed = 0, False, False
    ratio.tests += 1


def fold(ratio: Ratio, model: str, at_ns: int, documents: Mapping[int, Document]) -> Alarm | None:
    """Count what is old enough.

    Args:
        at_ns: up to where the log was read.

    Returns:
        Once a revision: that traffic is not split as it says.
    """
    settled = (at_ns - SETTLED_NS) // SPAN_NS
    due = [w for w in ratio.waiting if w.span < settled]
    ratio.waiting = [w for w in ratio.waiting if w.span >= settled]
    alarm = None
    for waiting in sorted(due, key=lambda w: (w.revision, w.span)):
        document = documents.get(waiting.revision)
        if document is None or waiting.revision < ratio.revision:
            continue
        begin(ratio, document)
        if ratio.paused:
            continue
        for name, count in sorted(waiting.counts.items()):
            if name in ratio.weights_bp:
                ratio.counts[name] = ratio.counts.get(name, 0) + count
            else:
                ratio.strays += count
        if not ratio.alarmed and ratio.evidence >= ratio.needed:
            ratio.alarmed = True
            alarm = _alarm(ratio, model, waiting.counts)
    return alarm


def _weights_bp(document: Document) -> dict[str, int]:
    return {arm.name: arm.weight_bp for arm in document.arms if arm.role != "shadow" and arm.weight_bp}


def _alarm(ratio: Ratio, model: str, latest: Mapping[str, int]) -> Alarm:
    counts = dict(ratio.counts)
    says = f"model {model[:64]}: traffic of revision {ratio.revision} is not split as the route says: "
    if ratio.strays:
        stray = sorted(set(latest) - set(ratio.weights_bp))
        says += f"{ratio.strays} requests fell on {', '.join(stray)[:64]}, which has no weight"
    else:
        total = ratio.requests
        worst = max(
            ratio.weights_bp, key=lambda name: abs(counts.get(name, 0) - total * ratio.weights_bp[name] / 1e4)
        )
        says += (
            f"{worst[:64]} got {counts.get(worst, 0):,} of {total:,} requests, and {ratio.weights_bp[worst] / 100:g}%"
            f" are its share; evidence {ratio.evidence:.3g}, needed {ratio.needed:.3g}"
        )
    return Alarm(model, ratio.revision, counts, dict(ratio.weights_bp), ratio.evidence, ratio.needed, says)
