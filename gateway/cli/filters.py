"""Which records a command is about: one set of options for all that read the log."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click

from gateway.audit.event import Event, Prediction, time_of
from gateway.audit.kinds import KINDS
from gateway.cli import records

_AGO = re.compile(r"(\d+)(ms|s|m|h|d|w)")
_UNIT_NS = {
    "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9, "w": 604_800 * 10**9,
}  # fmt: skip


class Moment(click.ParamType):
    """A time: `2026-11-27T09:30`, with a zone or in UTC, a date, or how long ago, as `90m`. Converts to epoch ns."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See the class."""
        if isinstance(value, int):
            return value
        ago = _AGO.fullmatch(value)
        if ago is not None:
            return time.time_ns() - int(ago[1]) * _UNIT_NS[ago[2]]
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r}; expected 2026-11-27, 2026-11-27T09:30 (UTC), or how long ago: 90m, 2h, 7d")
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return int(at.timestamp() * 1e6) * 1000


class Filter(NamedTuple):
    """What is asked of records; None asks nothing."""

    type: str | None = None
    model: str | None = None
    version: str | None = None
    code: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None

    def keeps(self, event: Event) -> bool:
        """Whether a record is one of these. Heartbeats only where they are asked for."""
        named = records.type_of(event)
        if named == "heartbeat" if self.type is None else named != self.type:
            return False
        if self.model is not None and records.model_of(event) != self.model:
            return False
        if self.version is not None and records.version_of(event) != self.version:
            return False
        if self.code is not None and self.code not in _codes(event):
            return False
        at_ns = time_of(event)
        return (self.since_ns is None or at_ns >= self.since_ns) and (
            self.until_ns is None or at_ns < self.until_ns
        )


def _codes(event: Event) -> tuple[str | None, ...]:
    if isinstance(event, Prediction):
        return (event.code, str(event.status), event.kind)
    return (getattr(event, "code", None), getattr(event, "cause", None), event.kind)


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a `Filter`, and hand it one as `wanted`."""

    @click.option("--type", "kind", type=click.Choice(sorted(KINDS)), help="Only this type.")
    @click.option("--model", metavar="NAME", help="Only records about this model.")
    @click.option("--version", metavar="N", help="Only records about this version.")
    @click.option(
        "--code", metavar="CODE", help="Only with this code, HTTP status, cause or kind: overloaded, 503."
    )
    @click.option(
        "--since", type=Moment(), metavar="TIME", help="From then on: 2026-11-27T09:30 (UTC), or 2h ago."
    )
    @click.option("--until", type=Moment(), metavar="TIME", help="Before then.")
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        kind: str | None,
        model: str | None,
        version: str | None,
        code: str | None,
        since: int | None,
        until: int | None,
        **rest: Any,
    ) -> Any:
        return function(*args, wanted=Filter(kind, model, version, code, since, until), **rest)

    return wrapped
