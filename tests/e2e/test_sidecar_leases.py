"""A canary under a lease with a sidecar that watches: kept as long as it sees all."""

from __future__ import annotations

import time
from pathlib import Path

from bench.serving import Gateway
from tests.e2e.onnx_models import write_linear

ROUTE = "routes/linear"
VARIANTS = [
    {"name": "primary", "version": "2", "role": "primary", "weight_bp": 5_000},
    {"name": "canary", "version": "1", "role": "canary", "weight_bp": 5_000},
]


def test_a_lease_is_kept_by_the_sidecar(tmp_path: Path) -> None:
    """Over three lengths of it in a quiet gateway; the revision stays. With an idle log every source still writes."""
    write_linear(tmp_path / "models", version="1", scale=0.25)
    write_linear(tmp_path / "models", version="2", scale=0.5)
    settings = ("policy.linear.ramp=auto", "policy.linear.lease_s=2", "policy.linear.max_staleness_s=3")
    with Gateway(tmp_path / "models", tmp_path / "state", workers=2, settings=settings) as gateway:
        deadline = time.monotonic() + 20
        body = {"variants": VARIANTS, "reason": "split"}
        while gateway.admin("PUT", ROUTE, body, revision=revision(gateway)).status not in (200, 202):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # The sidecar starts beside the workers and takes a moment.
        while gateway.admin("GET", ROUTE).content["variants"][1]["lease_over"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        began = revision(gateway)
        end = time.monotonic() + 6
        while time.monotonic() < end:
            shown = gateway.admin("GET", ROUTE).content
            assert not shown["variants"][1]["lease_over"], shown
            time.sleep(0.1)
        assert revision(gateway) == began


def revision(gateway: Gateway) -> int:
    """Where the route stands."""
    return int(gateway.admin("GET", ROUTE).content["revision"])
