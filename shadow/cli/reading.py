"""What commands about the sidecar's work read: log, bundles, gateway. Options and the replay behind them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import rich.console
import rich.progress

from gateway.audit.event import Verdict
from gateway.cli.audit import KAFKA_QUIET_MS, Place, place_options
from gateway.cli.client import repository, state_directory
from gateway.errors import LogIncomplete
from shadow.bundles import Bundles
from shadow.replay import Replayed, Source, read_verdicts, replay, stored_of
from shadow.state import WatchState
from shadow.verdicts import Stored, gateway_sources, spool_verdicts


class Reading(NamedTuple):
    """One log, the bundles that its records name, and whose verdicts are wanted."""

    place: Place
    models: Path
    gateway_id: str | None

    def verdicts(self) -> tuple[str, list[Verdict]]:
        """The gateway's id and its sidecar's verdicts, oldest first.

        Raises:
            LogIncomplete: no gateway, or several to choose from.
        """
        if self.place.kafka is not None:
            feed = self.place.feed()
            try:
                return read_verdicts(feed, self.gateway_id, KAFKA_QUIET_MS)
            finally:
                feed.close()
        gateway_id = self.gateway_id or _gateway_id(self.place.spool)
        found = spool_verdicts(self.place.spool, gateway_sources(gateway_id, ("sidecar",)), {})
        return gateway_id, sorted(found, key=lambda event: (event.at_ns, event.id))

    def replay(self) -> tuple[list[Stored], Replayed]:
        """Fold the whole log again, with a bar on stderr where a person looks.

        Raises:
            LogIncomplete: it is not all there.
        """
        gateway_id, verdicts = self.verdicts()
        stored = stored_of(verdicts)
        source = Source(self.place.feed, KAFKA_QUIET_MS if self.place.kafka is not None else 0)
        console = rich.console.Console(stderr=True)
        bundles = Bundles(self.models)
        with rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("folding the log", total=len(stored))
            replayed = replay(
                source, gateway_id, stored, bundles, lambda done: bar.update(task, completed=done)
            )
        return stored, replayed

    def unread(self, state: WatchState) -> list[str]:
        """Versions whose bundles the log names and that are not here: what rests on them cannot be judged."""
        bundles = Bundles(self.models)
        reasons = (
            bundles.reason(model, version, tree)
            for model, versions in sorted(state.trees.items())
            for version, tree in sorted(versions.items())
            if tree
        )
        return [reason for reason in reasons if reason is not None]


def reading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say what is read, and hand it a `Reading`."""

    @place_options
    @click.option("--models", metavar="DIR", help="The model repository [default: what the gateway served].")
    @click.option(
        "--gateway", "gateway_id", metavar="ID", help="Whose verdicts, where the log holds several."
    )
    @functools.wraps(function)
    def wrapped(*args: Any, place: Place, models: str | None, gateway_id: str | None, **rest: Any) -> Any:
        where = Path(models) if models is not None else repository(place.spool.parent)
        return function(*args, reading=Reading(place, where, gateway_id), **rest)

    return wrapped


def _gateway_id(spool: Path) -> str:
    try:
        return (spool.parent / "gateway_id").read_text().strip()
    except OSError as exc:
        where = state_directory(str(spool.parent))
        msg = f"no gateway was ever started in {where}: set --state-dir, or name it with --gateway"
        raise LogIncomplete(msg) from exc
