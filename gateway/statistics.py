"""Statistics: what a version did since the gateway started, as Open Inference Protocol clients ask for it.

fleet -> **statistics** -> the protocol's `/stats`. Read on demand from shared memory, summed over all workers; costs
the request path nothing.
"""

from __future__ import annotations

import msgspec

from gateway import fleet as words_of
from gateway.counting import variant_cells
from gateway.fleet import ROWS_BOUNDS, RUN0, RUN_WORDS, STAGE_NS0, Fleet
from gateway.stages import TIMED_STAGES


class Duration(msgspec.Struct):
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0


class BatchStatistics(msgspec.Struct):
    """Runs of up to `batch_size` rows, and more than the next smaller entry's; counts are runs."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class VersionStatistics(msgspec.Struct):
    """One version over all workers.

    Durations count requests: each request of a run waited for the whole of it. `inference_count` counts rows of
    answered requests, `execution_count` runs. Compute input is decoding, output encoding. Nothing is cached.
    """

    last_inference_ms: int
    """Epoch; 0: never."""
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration
    batches: list[BatchStatistics]


def version_statistics(fleet: Fleet, slot: int, name: tuple[str, str] | None = None) -> VersionStatistics:
    """What stands in a version's slot, summed over all workers. Cost: about 100 us a worker.

    Expired and cancelled requests count as neither success nor failure of the version.

    Args:
        name: model and version; a worker that has the slot for another still does not count.
    """
    workers = range(fleet.workers)
    slots = [fleet.slot(i, slot) if name is None else fleet.version(i, slot, *name) for i in workers]

    def total(word: int) -> int:
        return sum(words[word] for words in slots)

    cells = [(words, cell) for words in slots for cell, _ in variant_cells(words)]
    took_ns = sum(words[cell + words_of.VARIANT_NS] for words, cell in cells)
    runs = _runs(slots)
    done, failed_ns = total(words_of.DONE), total(words_of.FAILED_NS)
    ran = sum(
        words[cell + words_of.VARIANT_DONE] + words[cell + words_of.VARIANT_FAILED] for words, cell in cells
    )

    def stage(name: str) -> Duration:
        return Duration(ran, total(STAGE_NS0 + TIMED_STAGES.index(name)))

    return VersionStatistics(
        last_inference_ms=max(words[words_of.LAST_INFERENCE_MS] for words in slots),
        inference_count=total(words_of.DONE_ROWS),
        execution_count=sum(run.compute_infer.count for run in runs),
        success=Duration(done, max(took_ns - failed_ns, 0)),
        fail=Duration(total(words_of.FAILED), failed_ns),
        queue=stage("queue"),
        compute_input=stage("decode"),
        compute_infer=stage("infer"),
        compute_output=stage("encode"),
        cache_hit=Duration(),
        cache_miss=Duration(),
        batches=runs,
    )


def _runs(slots: list[memoryview]) -> list[BatchStatistics]:
    """By size; sizes that never ran are left out."""
    found = []
    # What is above the last bound is told as twice that bound.
    for index, bound in enumerate((*ROWS_BOUNDS, ROWS_BOUNDS[-1] * 2)):
        at = RUN0 + index * RUN_WORDS
        count, input_ns, infer_ns, output_ns = (
            sum(words[at + offset] for words in slots) for offset in range(RUN_WORDS)
        )
        if count:
            times = (Duration(count, ns) for ns in (input_ns, infer_ns, output_ns))
            found.append(BatchStatistics(bound, *times))
    return found
