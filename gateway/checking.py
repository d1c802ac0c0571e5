"""Checking versions without a gateway: what `tidegate model check` does, and what a build can do before it ships.

The same trial as in a worker: the file is looked through, loaded in a capped child, probed and run on its golden rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gateway.settings import Session
from loaders.errors import ModelError
from loaders.repository import scan
from loaders.session import Threads, check
from loaders.verdicts import Trials


def versions_below(path: Path) -> tuple[Path, list[tuple[str, str]], tuple[str, ...]]:
    """The repository that a directory is, or lies in, its versions below the directory, and what was passed over.

    Raises:
        RepositoryMissing: it cannot be read.
    """
    for root, depth in ((path.parent.parent, 2), (path.parent, 1)):
        parts = path.parts[-depth:]
        models = scan(root).models if _may_hold(path, depth) else {}
        if depth == 2 and parts[1] in models.get(parts[0], ()):
            return root, [(parts[0], parts[1])], ()
        if depth == 1 and parts[0] in models:
            return root, [(parts[0], version) for version in models[parts[0]]], ()
    found = scan(path)
    return path, [(m, v) for m, versions in found.models.items() for v in versions], found.problems


def _may_hold(path: Path, depth: int) -> bool:
    """Whether a directory may be a version (2) or a model (1): its neighbours are looked at only then."""
    if depth == 2:
        return path.name.isdigit()
    return any(child.name.isdigit() and child.is_dir() for child in path.iterdir())


def check_versions(
    root: Path, versions: Iterable[tuple[str, str]], settings: Session, kept: Path
) -> list[dict[str, Any]]:
    """Try them one after another; never raises for what is wrong with one.

    Args:
        kept: a directory for verdicts.
    """
    trials = Trials(kept, cpu_s=settings.trial_cpu_s, memory_bytes=settings.trial_memory_bytes)
    threads = Threads(settings.providers, settings.intra_op_threads or 1)
    out: list[dict[str, Any]] = []
    try:
        for model, version in versions:
            one: dict[str, Any] = {"model": model, "version": version, "ok": True}
            try:
                facts, found = check(root, model, version, trials, threads)
            except ModelError as exc:
                one.update(ok=False, code=exc.code, reason=str(exc))
            else:
                one.update(
                    tree_sha256=facts.tree_sha256,
                    canonical_sha256=facts.canonical_sha256,
                    batchable=facts.batchable,
                    memory_bytes=facts.memory_bytes,
                    load_ms=facts.load_ms,
                    run_us=facts.warm_cost_ns.get(1, 0) / 1000,
                    golden_lines=facts.golden_lines,
                    endless=facts.endless,
                    warnings=list(found.config.warnings),
                )
            out.append(one)
    finally:
        trials.close()
    return out
