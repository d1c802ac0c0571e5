"""Counting: what a run adds to shared memory, whoever and however many were in it."""

from __future__ import annotations

from bisect import bisect_left
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from gateway import counting
from gateway import fleet as words_of
from gateway.batching import CUT_REASONS, Batch, Inference
from gateway.counting import Counting, variant_cells
from gateway.fleet import LATENCY_BOUNDS_NS, ROWS_BOUNDS, STAGE_BOUNDS_NS
from gateway.stages import TIMED_STAGES

SECOND_NS = 1_000_000_000


def words() -> memoryview:
    """One version's slot."""
    return memoryview(bytearray(words_of.SLOT_BYTES)).cast("Q")


def batch_of(queue_ns: list[int], *variants: str) -> tuple[Batch, int]:
    """A run of one-row requests that waited so long, as recording leaves it; and when it was done."""
    inferences = []
    started = 10 * SECOND_NS
    for index, waited in enumerate(queue_ns):
        one = Inference(None, started - waited - 6000)
        one.assignment = SimpleNamespace(
            served=variants[index % len(variants)] if variants else None, reason="pinned"
        )
        inferences.append(one)
    batch = Batch(inferences, len(inferences), "turn")
    batch.started_ns, batch.ended_ns = started, started + 200_000
    count = len(queue_ns)
    batch.columns = [[[1000] * count, [2000] * count, [3000] * count, queue_ns]]
    batch.same_route = len(set(variants)) < 2
    return batch, batch.ended_ns + 7000


def histogram(found: memoryview, stage: str) -> list[int]:
    """A stage's counts."""
    first = words_of.STAGE0 + TIMED_STAGES.index(stage) * words_of.STAGE_BUCKETS
    return found[first : first + words_of.STAGE_BUCKETS].tolist()


@given(st.lists(st.integers(0, 3 * SECOND_NS), min_size=1, max_size=40))
def test_a_histogram_by_run_is_the_histogram_by_request(queue_ns: list[int]) -> None:
    """Counting many at once gives what counting each gives, in every stage and in the latency."""
    found, (batch, done_ns) = words(), batch_of(queue_ns, "primary")
    Counting(found).run(batch, done_ns, 0, failed=False)
    counting.publish()
    wanted = [0] * words_of.STAGE_BUCKETS
    for waited in queue_ns:
        wanted[bisect_left(STAGE_BOUNDS_NS, waited)] += 1
    assert histogram(found, "queue") == wanted
    latency = [0] * words_of.STAGE_BUCKETS
    for inference in batch.inferences:
        latency[bisect_left(LATENCY_BOUNDS_NS, done_ns - inference.received_ns)] += 1
    ((cell, name),) = variant_cells(found)
    first = cell + words_of.VARIANT_LATENCY0
    assert (name, found[first : first + 16].tolist()) == ("primary", latency)
    for stage, each_ns in {
        "admit": 1000,
        "decode": 2000,
        "route": 3000,
        "infer": 200_000,
        "encode": 7000,
    }.items():
        counts = histogram(found, stage)
        assert (sum(counts), counts[bisect_left(STAGE_BOUNDS_NS, each_ns)]) == (len(queue_ns),) * 2
        assert found[words_of.STAGE_NS0 + TIMED_STAGES.index(stage)] == each_ns * len(queue_ns)


def test_a_run_is_counted_once_by_size_and_cut() -> None:
    """Five rows are a run of up to eight; all its requests decoded, it ran once."""
    found, (batch, done_ns) = words(), batch_of([0] * 5)
    Counting(found).run(batch, done_ns, 3, failed=False)
    counting.publish()
    at = words_of.RUN0 + ROWS_BOUNDS.index(8) * words_of.RUN_WORDS
    assert found[at : at + 4].tolist() == [1, 10_000, 200_000, 7000]
    assert found[words_of.CUT0 + CUT_REASONS.index("turn")] == 1
    assert (found[words_of.ROWS], found[words_of.DONE_ROWS], found[words_of.QUEUED]) == (5, 5, 3)


def test_variants_are_told_apart() -> None:
    """Requests of one run count for the variants that they were served as; a pinned one has its reason as name."""
    found = words()
    one = Counting(found)
    one.run(*batch_of([5, 6, 7], "primary", "canary"), 0, failed=False)
    one.run(*batch_of([5]), 0, failed=True)
    counting.publish()
    counts = {
        name: (found[cell + words_of.VARIANT_DONE], found[cell + words_of.VARIANT_FAILED])
        for cell, name in variant_cells(found)
    }
    assert counts == {"primary": (2, 0), "canary": (1, 0), "pinned": (0, 1)}
    assert (found[words_of.DONE], found[words_of.FAILED]) == (3, 1)


def test_more_variants_than_cells_count_together() -> None:
    """However many names a version was served as, its cells are as many as they are."""
    found = words()
    one = Counting(found)
    for index in range(20):
        one.run(*batch_of([1], f"variant-{index}"), 0, failed=False)
    counting.publish()
    cells = variant_cells(found)
    assert [name for _, name in cells] == [
        *(f"variant-{i}" for i in range(words_of.VARIANTS_MAX - 1)),
        "other",
    ]
    assert found[cells[-1][0] + words_of.VARIANT_DONE] == 20 - len(cells) + 1


def test_a_successor_goes_on() -> None:
    """Counters stand in shared memory: a second writer adds to what the first left, in the same cells."""
    found = words()
    for _ in range(2):
        Counting(found).run(*batch_of([1], "x" * 128), 0, failed=False)
        counting.publish()
    ((cell, name),) = variant_cells(found)
    assert (name, found[cell + words_of.VARIANT_DONE], found[words_of.DONE]) == ("x" * 128, 2, 2)


def test_what_stands_beside_is_left_alone() -> None:
    """Publishing counts touches no word that others write: load state, labels, reason."""
    found = words()
    own = {index for start, end in words_of.COUNTED for index in range(start, end)}
    own |= {words_of.LAST_INFERENCE_MS, words_of.QUEUED}
    for index in range(len(found)):
        if index not in own:
            found[index] = index + 1
    Counting(found).run(*batch_of([1], "primary"), 0, failed=False)
    counting.publish()
    assert [found[i] for i in range(len(found)) if i not in own] == [
        i + 1 for i in range(len(found)) if i not in own
    ]


def test_nothing_of_a_slot_overlaps() -> None:
    """The words of a slot, and those of a worker, stand beside each other."""
    spans = [
        (words_of.FLAGGED0, 3), (words_of.REJECTED0, 3), (words_of.CUT0, words_of.CUTS_MAX),
        (words_of.STAGE_NS0, len(TIMED_STAGES)),
        (words_of.STAGE0, len(TIMED_STAGES) * words_of.STAGE_BUCKETS),
        (words_of.RUN0, (len(ROWS_BOUNDS) + 1) * words_of.RUN_WORDS),
        (words_of.VARIANT0, words_of.VARIANTS_MAX * words_of.VARIANT_WORDS),
    ]  # fmt: skip
    taken = [index for first, size in spans for index in range(first, first + size)]
    assert len(taken) == len(set(taken))
    assert max(taken) < words_of.SLOT_WORDS
    assert words_of.SLOT_WORDS * 8 + words_of.REASON_BYTES <= words_of.SLOT_BYTES
    assert words_of.STAGE_BUCKETS == len(STAGE_BOUNDS_NS) + 1 == len(LATENCY_BOUNDS_NS) + 1
    assert words_of.TIMED_OUT0 + len(words_of.TIMEOUTS) <= words_of.ERROR_CODE0
    assert words_of.WORKER_WORDS * 8 <= words_of.PAGE_BYTES
    assert len(CUT_REASONS) < words_of.CUTS_MAX
    assert len(counting.ERROR_CODES) < words_of.ERROR_CODES_MAX


def test_versions_that_share_their_words_lose_no_request() -> None:
    """A version that is loaded again counts while the former one ends what it has: none looks aborted."""
    words = memoryview(bytearray(words_of.SLOT_WORDS * 8)).cast("Q")
    former = Counting(words)
    former.admitted(4, 4)
    former.recorded(1)
    again = Counting(words)
    again.admitted(3, 3)
    former.recorded(3)
    again.recorded(2)
    again.admitted(5, 1)
    again.recorded(3)
    assert (words[words_of.ADMITTED], words[words_of.RECORDED]) == (9, 9)
