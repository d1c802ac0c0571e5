"""The processor as it stands in the log."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from loaders.processor import processor

MACHINE = platform.machine()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 fma sse avx\nflags\t: avx512f\n", f"{MACHINE}+avx+fma+avx2"),
        ("Features\t: fp asimd sve asimddp\n", f"{MACHINE}+asimddp+sve"),
        ("", MACHINE),
        (None, MACHINE),
    ],
)
def test_instructions_that_kernels_are_chosen_by(tmp_path: Path, text: str | None, said: str) -> None:
    """In one order, of the first processor; without the file the architecture alone."""
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    assert processor.__wrapped__(file) == said
