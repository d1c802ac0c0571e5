"""The gateway's memory plan, from its configuration: what `loaders.memory` counts with.

`tidegate serve` prints it at start and refuses when it is over; workers hold each version that they load against it.
"""

from __future__ import annotations

from gateway.config import Config
from loaders.memory import Plan, limit_bytes

SMALL_RINGS_BYTES = 4 * (4 << 20)
"""Of control, recorder, sidecar and mirror."""


def memory_plan(config: Config) -> Plan:
    """What workers and rings may take together."""
    return Plan(
        limit_bytes=config.session.memory_max_bytes or limit_bytes(),
        workers=config.workers,
        rings_bytes=config.workers * config.audit.ring_bytes + SMALL_RINGS_BYTES,
    )
