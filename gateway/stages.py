"""The words for the steps of one request and of the log behind it.

One vocabulary for code, metric labels, timings in events and docs. The order of the request stages
is the order in which a request passes them; a test compares it with what an event recorded.
"""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """A step of the request path, in the order that a request passes them."""

    ADMIT = "admit"
    DECODE = "decode"
    ROUTE = "route"
    QUEUE = "queue"
    INFER = "infer"
    ENCODE = "encode"
    APPEND = "append"


class LogStage(StrEnum):
    """A step behind the append, in the order that a record passes them."""

    DRAIN = "drain"
    FORWARD = "forward"
    MIRROR = "mirror"
    WATCH = "watch"
    DECIDE = "decide"
    ACT = "act"


REQUEST_STAGES: tuple[str, ...] = tuple(stage.value for stage in Stage)
TIMED_STAGES: tuple[str, ...] = REQUEST_STAGES[:-1]
"""The stages whose durations stand in the event; append comes after the event is sealed."""
