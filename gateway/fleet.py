"""The fleet's shared memory: what workers publish and what /metrics, readiness and control read.

One file, made by the supervisor, mapped by every process. Every word is a native u64 stored whole, and
has one writer. A page of header (generation and number of shadows, written by control), then one block a
worker index, one more than there are workers, so that a successor can come before its predecessor leaves: a page of
its own facts, then `SLOTS` slots of 4 KiB, one a loaded version. Control numbers the slots
(snapshot's `DesiredVersion.slot`) and gives one that is free again to another version; a slot's counters belong to the
worker index, so a successor goes on where its predecessor was killed; the supervisor zeroes the gauges of a dead
worker. Each slot names whose counters stand in it: a worker that takes one over zeroes it, and who reads it before
that sees zeros.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

MAGIC = int.from_bytes(b"TGFLEET3", "big")
PAGE_BYTES = 4096
SLOT_BYTES = 4096
SLOTS = 512
"""Versions that can be loaded at a time."""
BLOCK_BYTES = PAGE_BYTES + SLOTS * SLOT_BYTES
REASON_BYTES = 512

# Header words.
_MAGIC, _BLOCKS, _GENERATION, _SHADOWS, _WANTED, _TOKENS = 0, 1, 2, 3, 4, 5

# Words of a worker's own page.
PID = 0
STATE = 1
GENERATION = 2
"""The generation this worker runs."""
HEARTBEAT_NS = 3
"""Monotonic clock, stored by a task of the event loop."""
STARTED_NS = 4
RESTARTS = 5
"""Counted by the supervisor."""
INFLIGHT = 6
CONNECTIONS = 7
HELD_REPLIES = 8
RING_USED_BYTES = 9
REFUSED = 10
"""Requests refused before they had a version (counter)."""
GAPS = 11
"""Numbers drawn without a record (counter)."""
TURNS = 12
EPOCH = 13
CONNECTIONS_REFUSED = 14
"""Connections beyond the cap that found no room (counter)."""
RSS_BYTES = 15
CPU_NS = 16
"""Of the worker and its predecessors (counter)."""
LOOP_GAP_NS = 17
"""The longest turn of the loop in the last second, beyond the timer that looks."""
CONNECTIONS_EVICTED = 18
"""Idle connections closed to make room (counter)."""
LOG_UNAVAILABLE = 19
"""1: records cannot be kept at present (the recorder cannot write, or the ring is full and nothing moves)."""
LAME = 20
"""Connections that asked nothing in a stopping worker's lame-duck time, and were closed (counter)."""
SPARE = 22
"""1: no worker is to run here at present (supervisor)."""
TIMED_OUT0 = 24
"""Connections cut off for being slow (counters), one a code in TIMEOUTS."""
ERROR_CODE0 = 32
"""Errors answered (counters), one a code in `gateway.counting.ERROR_CODES`, what is not among them in the last."""
ERROR_CODES_MAX = 96
WORKER_WORDS = ERROR_CODE0 + ERROR_CODES_MAX
GAUGES = (
    INFLIGHT,
    CONNECTIONS,
    HELD_REPLIES,
    RING_USED_BYTES,
    HEARTBEAT_NS,
    GENERATION,
    RSS_BYTES,
    LOOP_GAP_NS,
    LOG_UNAVAILABLE,
)

TIMEOUTS = ("request_timeout", "write_timeout")
"""What a connection was too slow with: sending its request, or taking its answer."""

# STATE of a worker.
DOWN, STARTING, SERVING, DRAINING = range(4)

# Words of a slot.
LOAD_STATE = 0
ADMITTED = 1
RECORDED = 2
DONE = 3
FAILED = 4
CANCELLED = 5
EXPIRED = 6
ROWS = 7
DONE_ROWS = 8
"""Rows of the requests that were answered."""
FAILED_NS = 9
"""What requests of failed runs took, from first byte to reply."""
LAST_INFERENCE_MS = 10
"""When the last run ended (epoch)."""
OLDEST_NS = 11
"""Gauge: when the longest waiting request came (monotonic clock); 0: none waits."""
QUEUED = 12
"""Gauge: rows waiting."""
LOAD_MS = 13
LABELS = 14
"""Labels accepted for the version's model (counter); they stand in the model's lowest slot."""
FLAGGED0 = 16
"""Requests whose inputs were out of profile (counters), one a kind in FLAG_KINDS."""
REJECTED0 = 20
"""Requests refused for that, by kind."""
CUT0 = 24
"""Runs by why they were cut, one a reason in `gateway.batching.CUT_REASONS`."""
CUTS_MAX = 16
STAGE_NS0 = 40
"""Time that requests spent in each stage, one a stage in TIMED_STAGES."""
STAGE0 = 48
"""A histogram for each timed stage: STAGE_BUCKETS counts, one a bound in STAGE_BOUNDS_NS plus +Inf."""
STAGE_BUCKETS = 16
RUN0 = 144
"""For each of ROWS_BOUNDS, and above: runs, and their decode (of all their requests), infer and encode time."""
RUN_WORDS = 4
VARIANT0 = 192
"""Cells of VARIANT_WORDS for the variants that the version served as: length and text of the name, done, failed, the
time those took, and their latency histogram: a count for each of LATENCY_BOUNDS_NS and above. Filled in order and never
given back; what finds none counts in the last, which has no name."""
VARIANTS_MAX = 6
VARIANT_NAME_WORDS = 17
VARIANT_DONE, VARIANT_FAILED, VARIANT_NS, VARIANT_LATENCY0 = 17, 18, 19, 20
VARIANT_WORDS = 36
COUNTED = ((DONE, FAILED_NS + 1), (FLAGGED0, VARIANT0 + VARIANTS_MAX * VARIANT_WORDS))
"""Ranges of words that `gateway.counting` adds up at hand and adds on here every few milliseconds."""
OWNER0 = VARIANT0 + VARIANTS_MAX * VARIANT_WORDS
"""Length and text of whose counters these are: model, a null character, version."""
OWNER_WORDS = 24
SLOWDOWN_PM = 432
"""Gauge: time of runs by the clock over what was predicted, in thousandths."""
LIMIT_ROWS = 433
"""Gauge: rows that a run takes at most, as learnt."""
LIMIT_NS = 434
"""Gauge: what a run of so many is predicted to take."""
HUNG = 435
"""Gauge: runs that did not heed their end and go on."""
BREAKER_REVISION = 436
"""Gauge: the route's revision in which a breaker of a variant that it serves is open; 0: none is."""
BREAKER_COUNTS = 437
"""Requests that it could not answer and the primary then did (counter)."""
RETRIED = 438
"""Requests that it failed and that went to the primary (counter)."""
STOPPED = 439
"""Gauge: 1 while its model is stopped."""
FORCED = 440
"""Requests that named a variant which it serves (counter)."""
SLOT_WORDS = 448
SLOT_GAUGES = (QUEUED, OLDEST_NS, SLOWDOWN_PM, LIMIT_ROWS, LIMIT_NS, HUNG, BREAKER_REVISION, STOPPED)

LATENCY_BOUNDS_NS = tuple(
    int(ms * 1_000_000) for ms in (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10000)
)
STAGE_BOUNDS_NS = tuple(
    int(us * 1000)
    for us in (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 250_000, 1_000_000)
)
ROWS_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FLAG_KINDS = ("range", "missing", "unknown_category")
"""How an input can lie outside of what the version's reference held."""

# LOAD_STATE of a slot.
ABSENT, LOADING, READY, UNLOADING, LOAD_FAILED = range(5)
LOAD_STATES = ("absent", "loading", "ready", "unloading", "failed")


_ZEROS = memoryview(bytes(SLOT_WORDS * 8)).cast("Q")


class Fleet:
    """A view on the whole file.

    Args:
        memory: the mapped file.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._head = memory[:PAGE_BYTES].cast("Q")
        if self._head[_MAGIC] != MAGIC:
            msg = "not a fleet file of this version"
            raise ValueError(msg)
        self.workers: int = self._head[_BLOCKS]
        """Blocks, those of spare indices among them: what loops over all workers loops over these."""

    @staticmethod
    def size_bytes(workers: int) -> int:
        """The file's size for so many workers."""
        return PAGE_BYTES + workers * BLOCK_BYTES

    @classmethod
    def create(cls, path: Path, workers: int, spare: int = 0) -> Fleet:
        """Make the file (0600, really allocated) and map it; `spare` blocks more than there are workers."""
        blocks = workers + spare
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, cls.size_bytes(blocks))
            memory = memoryview(mmap.mmap(fd, cls.size_bytes(blocks)))
        finally:
            os.close(fd)
        head = memory[:PAGE_BYTES].cast("Q")
        head[_BLOCKS] = blocks
        head[_WANTED] = workers
        head[_MAGIC] = MAGIC
        made = cls(memory)
        for index in range(workers, blocks):
            made.set_spare(index, spare=True)
        return made

    @classmethod
    def open(cls, path: Path) -> Fleet:
        """Map an existing file."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = memoryview(mmap.mmap(fd, 0))
        finally:
            os.close(fd)
        return cls(memory)

    @property
    def wanted(self) -> int:
        """Workers that are to serve, as configured."""
        return self._head[_WANTED]

    def set_spare(self, index: int, *, spare: bool) -> None:
        """The supervisor: whether a worker is to run on an index."""
        self.worker(index)[SPARE] = int(spare)

    @property
    def shown(self) -> list[int]:
        """Indices to tell people of: those of wanted workers, and those where one lives still."""
        blocks = ((i, self.worker(i)) for i in range(self.workers))
        return [i for i, words in blocks if not words[SPARE] or words[STATE] != DOWN]

    @property
    def generation(self) -> int:
        """The newest generation that control published."""
        return self._head[_GENERATION]

    def publish_generation(self, generation: int) -> None:
        """Control alone."""
        self._head[_GENERATION] = generation

    @property
    def shadows(self) -> int:
        """Shadow variants that get a sample of the traffic; above 0 the supervisor runs the mirror."""
        return self._head[_SHADOWS]

    def publish_shadows(self, count: int) -> None:
        """Control alone, with each generation."""
        self._head[_SHADOWS] = count

    @property
    def tokens(self) -> int:
        """Moves when control has seen that tokens changed."""
        return self._head[_TOKENS]

    def publish_tokens(self) -> None:
        """Control alone: every worker reads the tokens again, at its next tick."""
        self._head[_TOKENS] += 1

    def worker(self, index: int) -> memoryview:
        """A worker's own words (u64)."""
        start = PAGE_BYTES + index * BLOCK_BYTES
        return self._memory[start : start + WORKER_WORDS * 8].cast("Q")

    def slot(self, index: int, slot: int) -> memoryview:
        """The words (u64) of one version in one worker."""
        start = self._slot_start(index, slot)
        return self._memory[start : start + SLOT_WORDS * 8].cast("Q")

    def owner(self, index: int, slot: int) -> tuple[str, str] | None:
        """Model and version whose counters stand in a slot; None as long as no worker has taken it."""
        words = self.slot(index, slot)[OWNER0 : OWNER0 + OWNER_WORDS]
        size = words[0]
        if not size:
            return None
        model, _, version = bytes(words[1:].cast("B"))[:size].decode(errors="replace").partition("\0")
        return model, version

    def take(self, index: int, slot: int, model: str, version: str) -> bool:
        """Make a slot a version's; all its words begin at zero when it was another's. Whether it was."""
        if self.owner(index, slot) == (model, version):
            return False
        start = self._slot_start(index, slot)
        raw = f"{model}\0{version}".encode()[: (OWNER_WORDS - 1) * 8]
        # Readers that come between find no owner, and zeros.
        self._memory[start : start + SLOT_BYTES] = bytes(SLOT_BYTES)
        at = start + (OWNER0 + 1) * 8
        self._memory[at : at + len(raw)] = raw
        self.slot(index, slot)[OWNER0] = len(raw)
        return True

    def version(self, index: int, slot: int, model: str, version: str) -> memoryview:
        """The words of a version in one worker; zeros as long as the worker has the slot for another."""
        words = self.slot(index, slot)
        return words if self.owner(index, slot) in {None, (model, version)} else _ZEROS

    def set_reason(self, index: int, slot: int, reason: str) -> None:
        """Why a version is in its load state (cut to 510 bytes); store it before the state."""
        raw = reason.encode()[: REASON_BYTES - 2].decode(errors="ignore").encode()
        start = self._slot_start(index, slot) + SLOT_WORDS * 8
        self._memory[start : start + 2 + len(raw)] = len(raw).to_bytes(2, "little") + raw

    def reason(self, index: int, slot: int) -> str:
        """What `set_reason` stored."""
        start = self._slot_start(index, slot) + SLOT_WORDS * 8
        size = int.from_bytes(self._memory[start : start + 2], "little")
        return bytes(self._memory[start + 2 : start + 2 + size]).decode(errors="replace")

    def zero_gauges(self, index: int) -> None:
        """The supervisor, for a dead worker."""
        words = self.worker(index)
        words[STATE] = DOWN
        for word in GAUGES:
            words[word] = 0
        for slot in range(SLOTS):
            view = self.slot(index, slot)
            if view[LOAD_STATE] != ABSENT:
                view[LOAD_STATE] = ABSENT
                for word in SLOT_GAUGES:
                    view[word] = 0

    def live_workers(self) -> list[int]:
        """Indices whose worker has registered and is not down."""
        return [i for i in range(self.workers) if self.worker(i)[STATE] != DOWN]

    def behind(self, index: int, other: int) -> tuple[list[str], list[str]]:
        """What another worker has ready and this one has not: still to come, and failed. Cost: about 0.3 ms."""
        waits: list[str] = []
        failed: list[str] = []
        for slot in range(SLOTS):
            if self.slot(other, slot)[LOAD_STATE] != READY:
                continue
            owner = self.owner(other, slot)
            state = self.slot(index, slot)[LOAD_STATE] if self.owner(index, slot) == owner else ABSENT
            if owner is not None and state != READY:
                (failed if state == LOAD_FAILED else waits).append("@".join(owner))
        return waits, failed

    def facts(self) -> list[dict[str, object]]:
        """What each worker says of itself, for people."""
        names = ("down", "starting", "serving", "draining")
        return [
            {
                "worker": i,
                "pid": words[PID],
                "state": names[words[STATE]],
                "generation": words[GENERATION],
                "restarts": words[RESTARTS],
                "inflight": words[INFLIGHT],
                "connections": words[CONNECTIONS],
            }
            for i in self.shown
            for words in (self.worker(i),)
        ]

    def _slot_start(self, index: int, slot: int) -> int:
        if not 0 <= slot < SLOTS:
            msg = f"slot {slot}: expected 0..{SLOTS - 1}"
            raise ValueError(msg)
        return PAGE_BYTES + index * BLOCK_BYTES + PAGE_BYTES + slot * SLOT_BYTES
