"""Files of strangers beside the graph itself: sizes that cost nothing, names that are no text, settings that change."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loaders import material
from loaders.errors import BundleInvalid, MemoryExceeded, ModelInvalid, VersionChanged
from loaders.model_config import WARNINGS_MAX, read_config
from loaders.registry import REASON_CHARS, Registry
from loaders.repository import scan
from loaders.verdicts import Facts, Request, Trials, Verdict
from tests.loaders import graphs


def test_file_larger_than_any_model_is_not_read(tmp_path: Path) -> None:
    """A file of holes takes no disk, and would take its size in a worker's memory."""
    directory = graphs.put(tmp_path, graphs.double())
    os.truncate(directory / "model.onnx", material.MODEL_MAX_BYTES + 1)
    with pytest.raises(ModelInvalid, match=r"^m/1/model.onnx is over 2 GiB"):
        material.read(tmp_path, "m", "1")


def test_files_larger_than_memory_are_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes beside the model would keep the loader hashing for hours."""
    directory = graphs.put(tmp_path, graphs.double())
    monkeypatch.setattr(material, "limit_bytes", lambda: 1 << 30)
    monkeypatch.setattr(material, "read_bundle", None)
    (directory / "holes").touch()
    os.truncate(directory / "holes", 1 << 34)
    with pytest.raises(MemoryExceeded, match=r"^m/1: its files take 16,384 MiB, .* 1,024 MiB"):
        material.read(tmp_path, "m", "1")


def test_trial_that_saw_other_settings_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.pbtxt decides how a graph is loaded: swapped for the time of the trial, it must not load untried."""
    facts = Facts(
        tree_sha256="t",
        config_sha256="harmless",
        canonical_sha256="c",
        batchable=True,
        inline_allowed=True,
        warm_cost_ns={1: 1_000},
    )
    trials = Trials(tmp_path)
    monkeypatch.setattr(
        trials, "_try", lambda request: Verdict(model="m", version="1", at_s=0.0, facts=facts)
    )
    request = Request(
        root="r", model="m", version="1", providers=(), intra_op_threads=1, cpu_s=1.0, memory_bytes=0
    )
    with pytest.raises(VersionChanged):
        trials.facts(request, ("t", "hostile"), "identity", 1)
    assert trials.facts(request, ("t", "harmless"), "identity", 1) == facts


def test_settings_are_hashed_as_they_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reading gives the settings and their digest."""
    directory = graphs.put(tmp_path, graphs.double())
    config = directory.parent / "config.pbtxt"
    config.write_text("optimization { graph { level: 2 } }")
    before = material.read(tmp_path, "m", "1")

    def swapping(path: Path) -> Any:
        found = read_config(path)
        config.write_text("optimization { graph { level: 0 } }")
        return found

    monkeypatch.setattr(material, "read_config", swapping)
    found = material.read(tmp_path, "m", "1")
    assert (found.config.graph_level, found.bundle.config_sha256) == (2, before.bundle.config_sha256)
    monkeypatch.undo()
    assert material.read(tmp_path, "m", "1").bundle.config_sha256 != before.bundle.config_sha256


def test_reason_is_text_whatever_a_file_is_called(tmp_path: Path) -> None:
    """A pipe with a name that is no UTF-8: the version fails with a reason that can be sent and stored."""
    directory = graphs.put(tmp_path, graphs.double())
    os.mkfifo(os.fsencode(directory) + b"/\xff")
    with pytest.raises(BundleInvalid):
        material.read(tmp_path, "m", "1")
    told: list[tuple[str, str | None]] = []
    failed = threading.Event()

    def on_change(model: str, version: str, state: str, reason: str | None) -> None:
        told.append((state, reason))
        if state == "failed":
            failed.set()

    registry = Registry(lambda model, version: material.read(tmp_path, model, version), on_change)  # type: ignore[arg-type,return-value]
    registry.want({("m", "1")})
    assert failed.wait(10)
    registry.close()
    reason = told[-1][1]
    assert reason is not None
    assert b"\\\\udcff is no regular file" in msgspec.json.encode(reason)


def test_reason_has_an_end(tmp_path: Path) -> None:
    """It stands in every refusal while the version is failed: a golden line's id may be megabytes."""
    failed = threading.Event()
    told: list[str | None] = []

    def on_change(model: str, version: str, state: str, reason: str | None) -> None:
        if state == "failed":
            told.append(reason)
            failed.set()

    def load(model: str, version: str) -> Any:
        raise ModelInvalid("m/1: " + "x" * 1_000_000)

    registry = Registry(load, on_change)
    registry.want({("m", "1")})
    assert failed.wait(10)
    registry.close()
    assert told == ["m/1: " + "x" * (REASON_CHARS - 5)]


def test_problem_is_text_whatever_a_directory_is_called(tmp_path: Path) -> None:
    """One directory whose name is no UTF-8 must not keep the others from being listed."""
    graphs.put(tmp_path, graphs.double())
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    found = scan(tmp_path)
    assert list(found.models) == ["m"]
    assert b"not a model name" in msgspec.json.encode(found.problems)


def test_warnings_of_one_file_are_few(tmp_path: Path) -> None:
    """Each is a line in the log at every look at the repository."""
    (tmp_path / "config.pbtxt").write_text("\n".join(f"unknown_{i}: 1" for i in range(5000)))
    warnings = read_config(tmp_path).warnings
    assert len(warnings) == WARNINGS_MAX + 1
    assert warnings[-1] == f"and {5000 - WARNINGS_MAX} more"
