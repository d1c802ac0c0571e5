"""The processor, as far as it decides which bits come out of a run. session -> **processor** -> the log's `runtime`.

ONNX Runtime chooses its kernels by the vector instructions that there are, and sums in another order with others. So
they stand in the record: `x86_64+avx2`. What a processor is called does not matter.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

CHOSEN_BY = (
    "avx",
    "fma",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
)
CHOSEN_BY_ARM = ("asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")
"""Flags of /proc/cpuinfo that kernels are chosen by. Source: onnxruntime/core/mlas/lib/platform.cpp."""


@lru_cache(1)
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Architecture and the instructions that count, in the order above. Cost: one read, once."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    have: set[str] = set()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            have = set(value.split())
            break
    return "+".join((platform.machine(), *(flag for flag in (*CHOSEN_BY, *CHOSEN_BY_ARM) if flag in have)))
