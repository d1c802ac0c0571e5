"""A bar on stderr where a person looks: how much of what is there was read. Nothing where stderr is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def reading(
    total: Callable[[], float | None], what: str, after_s: float = 0.0
) -> Iterator[Callable[[float], None]]:
    """Hands the caller what it tells its progress, in bytes or, for "records", records.

    Args:
        total: asked once the bar is shown; None where it is not known.
        after_s: shown only when it takes longer than this.
    """
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    amount = rich.progress.MofNCompleteColumn() if what == "records" else rich.progress.DownloadColumn(True)
    shown = rich.progress.Progress(
        rich.progress.TextColumn(what), rich.progress.BarColumn(), amount, rich.progress.TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip
    task: rich.progress.TaskID | None = None
    held = 0.0
    started_s = time.monotonic()

    def advance(done: float) -> None:
        nonlocal task, held
        held += done
        if task is None:
            if time.monotonic() - started_s < after_s:
                return
            task = shown.add_task(what, total=total())
            shown.start()
        shown.advance(task, held)
        held = 0.0

    try:
        if not after_s:
            advance(0)
        yield advance
    finally:
        if task is not None:
            shown.stop()
