"""Models that nobody here wrote: the ONNX backend suite over HTTP, as JSON flat and nested and as binary tensors.

JSON must be what the suite expects, within its tolerances; binary must be ONNX Runtime's own bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.serving import Gateway
from tests.corpus import backend_cases
from tests.corpus.backend_cases import Case
from tests.corpus.served import WAYS, Tally, cycle_all

QUICK_MODULES = (
    "bitcast", "add", "not_", "bitwiseor", "einsum", "string_split", "qlinearmatmul", "unsqueeze", "isnan",
    "compress", "regex_full_match",
)  # fmt: skip
"""Few operators that together have most datatypes and ranks, in and out; scalars and empty tensors too."""
CLIENTS = 3
"""That load, ask and unload at the same time."""
RIGHT_AT_LEAST = 1_660
RECYCLES_MAX = 3
LIVES = 2000
"""Of models in one gateway: more than it has slots for at a time."""
STRETCH = 100
"""Lives of models between two looks at the worker's memory."""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """One worker over an empty repository."""
    with _gateway(tmp_path) as started:
        yield started


def _gateway(directory: Path) -> Gateway:
    (directory / "models").mkdir(parents=True)
    settings = ["sidecar.enabled=false", "data.model_control=true"]
    return Gateway(directory / "models", directory / "state", settings=settings)


def _shapes_of(case: Case) -> set[tuple[str, str, int, bool]]:
    """What of the protocol a case touches: direction, datatype, rank, emptiness."""
    return {
        (side, tensor.datatype, len(tensor.shape), 0 in tensor.shape)
        for wanted in case.sets
        for side, tensors in (("in", wanted.inputs), ("out", wanted.answered))
        for tensor in tensors
    }


def one_of_each(cases: Sequence[Case]) -> list[Case]:
    """The fewest first cases that touch everything that all of them touch."""
    seen: set[tuple[str, str, int, bool]] = set()
    chosen = []
    for case in cases:
        if not _shapes_of(case) <= seen:
            chosen.append(case)
            seen |= _shapes_of(case)
    return chosen


def test_a_case_of_each_datatype_and_rank(gateway: Gateway, tmp_path: Path) -> None:
    """Each datatype, rank and emptiness that a few operators have is answered right, all three ways."""
    cases, _ = backend_cases.make(tmp_path / "quick.pickle", *QUICK_MODULES)
    chosen = one_of_each(cases)
    datatypes = {datatype for case in chosen for _, datatype, _, _ in _shapes_of(case)}
    assert len(datatypes) == 13, sorted(datatypes)
    tally = cycle_all(gateway, chosen, CLIENTS)
    assert not tally.wrong
    assert tally.right == dict.fromkeys(WAYS, len(chosen))


def _rss_mb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.prove
def test_the_whole_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the cases that are requests, at least 1,660 are right each way, and the workers outlive them."""
    cases, said = backend_cases.make(tmp_path / "all.pickle")
    began, whole, restarts, measured = time.monotonic(), Tally(), 0, []
    for start in range(0, len(cases), LIVES):
        with _gateway(tmp_path / f"from{start}") as gateway:
            for some in range(start, min(start + LIVES, len(cases)), STRETCH):
                whole.add(cycle_all(gateway, cases[some : min(some + STRETCH, start + LIVES)], CLIENTS))
                measured.append(_rss_mb(gateway.pids("worker")[0]))
            restarts += sum(worker["restarts"] for worker in gateway.admin("GET", "fleet").content["workers"])
    with capsys.disabled():
        print(f"\n{said.rstrip()}")
        print(
            f"{whole.requests} requests in {whole.cases} lives, {time.monotonic() - began:.0f} s: {whole.right}"
        )
        print(f"worker, each {STRETCH} lives: {measured} MB; restarts: {restarts}")
        print("\n".join(text[:300] for text in whole.wrong))
    assert whole.cases == len(cases) >= RIGHT_AT_LEAST
    assert all(count >= RIGHT_AT_LEAST for count in whole.right.values()), whole.wrong
    assert restarts <= RECYCLES_MAX
