"""What /metrics says of versions: their slots of shared memory, summed over workers, as metric families.

fleet -> **version_metrics** -> metrics. Labels are bounded: models and versions from the snapshot, variants from the
cells of a slot (their names came from snapshots, six at most), stages, kinds and reasons from closed sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from gateway import fleet as words_of
from gateway.batching import CUT_REASONS
from gateway.control.snapshot import DesiredVersion
from gateway.counting import variant_cells
from gateway.fleet import LATENCY_BOUNDS_NS, ROWS_BOUNDS, STAGE_BOUNDS_NS, Fleet
from gateway.stages import TIMED_STAGES

_OUTCOMES = (
    ("done", words_of.DONE),
    ("failed", words_of.FAILED),
    ("cancelled", words_of.CANCELLED),
    ("expired", words_of.EXPIRED),
)
_VERSION = ["model", "version"]


class _Slots:
    """One version's words in all workers."""

    def __init__(self, fleet: Fleet, desired: DesiredVersion) -> None:
        self.name = [desired.model, desired.version]
        self.words = [fleet.version(index, desired.slot, *self.name) for index in range(fleet.workers)]
        self.totals = [sum(column) for column in zip(*self.words, strict=True)]

    def variants(self) -> dict[str, list[int]]:
        """By variant the words of its cell, summed."""
        found: dict[str, list[int]] = {}
        for words in self.words:
            for cell, name in variant_cells(words):
                kept = found.setdefault(name, [0] * words_of.VARIANT_WORDS)
                for index in range(words_of.VARIANT_DONE, words_of.VARIANT_WORDS):
                    kept[index] += words[cell + index]
        return found


def version_metrics(fleet: Fleet, versions: Sequence[DesiredVersion], now_ns: int) -> Iterator[Metric]:
    """The families of all versions.

    Args:
        now_ns: the monotonic clock.
    """
    slots = [_Slots(fleet, desired) for desired in versions]
    yield from _counters(slots)
    yield from _variants(slots)
    yield _stages(slots)
    yield from _runs(slots)
    yield from _gauges(slots, now_ns)
    yield from _standing(slots)


def _counters(slots: list[_Slots]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "tidegate_requests", "admitted requests by what became of them", labels=[*_VERSION, "kind"]
    )
    rows = CounterMetricFamily("tidegate_rows", "rows run", labels=_VERSION)
    cuts = CounterMetricFamily(
        "tidegate_batches", "runs, by why the batch was cut when it was", labels=[*_VERSION, "cut"]
    )
    flagged = CounterMetricFamily(
        "tidegate_flagged_requests",
        "requests with inputs out of the reference profile, by kind and by what was done",
        labels=[*_VERSION, "kind", "policy"],
    )
    retried = CounterMetricFamily(
        "tidegate_retried_requests",
        "requests that it failed and that went to the primary; they count as failed here and there as what became",
        labels=_VERSION,
    )
    spoiled = CounterMetricFamily(
        "tidegate_breaker_counts", "requests that it failed and the primary then answered", labels=_VERSION
    )
    forced = CounterMetricFamily(
        "tidegate_forced_requests", "requests that named a variant which it serves", labels=_VERSION
    )
    for one in slots:
        retried.add_metric(one.name, one.totals[words_of.RETRIED])
        spoiled.add_metric(one.name, one.totals[words_of.BREAKER_COUNTS])
        forced.add_metric(one.name, one.totals[words_of.FORCED])
        for kind, word in _OUTCOMES:
            requests.add_metric([*one.name, kind], one.totals[word])
        rows.add_metric(one.name, one.totals[words_of.ROWS])
        for index, cut in enumerate(CUT_REASONS):
            cuts.add_metric([*one.name, cut], one.totals[words_of.CUT0 + index])
        for index, kind in enumerate(words_of.FLAG_KINDS):
            flagged.add_metric([*one.name, kind, "flag"], one.totals[words_of.FLAGGED0 + index])
            flagged.add_metric([*one.name, kind, "reject"], one.totals[words_of.REJECTED0 + index])
    yield from (requests, rows, cuts, flagged, retried, spoiled, forced)


def _variants(slots: list[_Slots]) -> Iterator[Metric]:
    labels = [*_VERSION, "variant"]
    answered = CounterMetricFamily(
        "tidegate_variant_requests", "requests that ran, by variant served", labels=[*labels, "kind"]
    )
    latency = HistogramMetricFamily(
        "tidegate_request_seconds", "from the first byte to the reply", labels=labels
    )
    for one in slots:
        for variant, cell in sorted(one.variants().items()):
            name = [*one.name, variant]
            answered.add_metric([*name, "done"], cell[words_of.VARIANT_DONE])
            answered.add_metric([*name, "failed"], cell[words_of.VARIANT_FAILED])
            counts = cell[words_of.VARIANT_LATENCY0 :]
            latency.add_metric(name, buckets(LATENCY_BOUNDS_NS, counts), cell[words_of.VARIANT_NS] / 1e9)
    yield from (answered, latency)


def _stages(slots: list[_Slots]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "tidegate_stage_seconds",
        "time of a request in each stage; all of a run wait for the whole of it",
        labels=[*_VERSION, "stage"],
    )
    for one in slots:
        for index, stage in enumerate(TIMED_STAGES):
            first = words_of.STAGE0 + index * words_of.STAGE_BUCKETS
            counts = one.totals[first : first + words_of.STAGE_BUCKETS]
            total_ns = one.totals[words_of.STAGE_NS0 + index]
            family.add_metric([*one.name, stage], buckets(STAGE_BOUNDS_NS, counts), total_ns / 1e9)
    return family


def _runs(slots: list[_Slots]) -> Iterator[Metric]:
    rows = HistogramMetricFamily("tidegate_run_rows", "rows of a run", labels=_VERSION)
    seconds = CounterMetricFamily(
        "tidegate_run_seconds", "time that runs took in the runtime", labels=_VERSION
    )
    width = words_of.RUN_WORDS
    for one in slots:
        at = words_of.RUN0
        sizes = one.totals[at : at + (len(ROWS_BOUNDS) + 1) * width]
        counts = sizes[::width]
        pairs = cumulative([str(bound) for bound in ROWS_BOUNDS], counts)
        rows.add_metric(one.name, pairs, one.totals[words_of.ROWS])
        seconds.add_metric(one.name, sum(sizes[2::width]) / 1e9)
    yield from (rows, seconds)


def _gauges(slots: list[_Slots], now_ns: int) -> Iterator[Metric]:
    ready = GaugeMetricFamily("tidegate_version_ready_workers", "workers that have it ready", labels=_VERSION)
    load = GaugeMetricFamily(
        "tidegate_version_load_seconds", "how long its last load took, in the slowest worker", labels=_VERSION
    )
    queued = GaugeMetricFamily("tidegate_queue_rows", "rows waiting", labels=_VERSION)
    age = GaugeMetricFamily(
        "tidegate_queue_oldest_seconds", "how long the oldest waiting request waits", labels=_VERSION
    )
    slowdown = GaugeMetricFamily(
        "tidegate_run_slowdown",
        "time of runs by the clock over what was predicted, in the slowest worker; 1: as predicted",
        labels=_VERSION,
    )
    most = GaugeMetricFamily(
        "tidegate_run_limit_rows",
        "rows that a run takes at most, as learnt, in the least worker",
        labels=_VERSION,
    )
    longest = GaugeMetricFamily(
        "tidegate_run_limit_seconds", "what a run of so many is predicted to take", labels=_VERSION
    )
    hung = GaugeMetricFamily(
        "tidegate_hung_runs",
        "runs that went on beyond their end, each on a thread of its own; a worker with 3 refuses the version",
        labels=_VERSION,
    )
    for one in slots:
        hung.add_metric(one.name, one.totals[words_of.HUNG])
        slowdown.add_metric(one.name, max(w[words_of.SLOWDOWN_PM] for w in one.words) / 1e3)
        limits = [w[words_of.LIMIT_ROWS] for w in one.words if w[words_of.LIMIT_ROWS]]
        most.add_metric(one.name, min(limits, default=0))
        longest.add_metric(one.name, max(w[words_of.LIMIT_NS] for w in one.words) / 1e9)
        ready.add_metric(one.name, sum(w[words_of.LOAD_STATE] == words_of.READY for w in one.words))
        load.add_metric(one.name, max(w[words_of.LOAD_MS] for w in one.words) / 1e3)
        queued.add_metric(one.name, one.totals[words_of.QUEUED])
        since = [w[words_of.OLDEST_NS] for w in one.words if w[words_of.OLDEST_NS]]
        age.add_metric(one.name, max(now_ns - min(since), 0) / 1e9 if since else 0.0)
    yield from (ready, load, queued, age, slowdown, most, longest, hung)


def _standing(slots: list[_Slots]) -> Iterator[Metric]:
    """What workers do with a version that its route alone does not tell."""
    broken = GaugeMetricFamily(
        "tidegate_breaker_open_workers",
        "workers that give its variant's traffic to the primary until the route's next revision",
        labels=_VERSION,
    )
    stopped = GaugeMetricFamily(
        "tidegate_stopped_workers", "workers that answer nothing of it: its model is stopped", labels=_VERSION
    )
    for one in slots:
        broken.add_metric(one.name, sum(w[words_of.BREAKER_REVISION] > 0 for w in one.words))
        stopped.add_metric(one.name, one.totals[words_of.STOPPED])
    yield from (broken, stopped)


def buckets(bounds_ns: Sequence[int], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulative buckets in seconds of counts by bound and above."""
    return cumulative([str(bound_ns / 1e9) for bound_ns in bounds_ns], counts)


def cumulative(bounds: list[str], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Pairs of bound and count of all up to it; `counts` has one more, for +Inf."""
    pairs: list[tuple[str, float]] = []
    seen = 0
    for bound, count in zip((*bounds, "+Inf"), counts, strict=False):
        seen += count
        pairs.append((bound, seen))
    return pairs
