"""A canary under a lease with a sidecar that watches: kept as long as it sees all."""

from __future__ import annotations

import time
from pathlib import Path

from tests.e2e.splits import revision, route, serving_two, split, variants

LEASE_S = 4
"""Renewed each third of it: a busy machine may be late by seconds."""


def test_a_lease_is_kept_by_the_sidecar(tmp_path: Path) -> None:
    """Over three lengths of it in a quiet gateway; the revision stays. With an idle log every source still writes."""
    settings = (
        "policy.linear.ramp=auto",
        f"policy.linear.lease_s={LEASE_S}",
        f"policy.linear.max_staleness_s={1.5 * LEASE_S:g}",
    )
    with serving_two(tmp_path, settings) as gateway:
        deadline = time.monotonic() + 60
        split(gateway, variants(5_000))
        # The sidecar starts beside the workers and takes a moment.
        while route(gateway)["variants"][1]["lease_over"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        began = revision(gateway)
        end = time.monotonic() + 3 * LEASE_S
        while time.monotonic() < end:
            shown = route(gateway)
            assert not shown["variants"][1]["lease_over"], shown
            time.sleep(0.1)
        assert revision(gateway) == began
