"""/metrics: what stands in shared memory, summed over workers, in the exposition format."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import config as configuration
from gateway import fleet as words_of
from gateway.api.metrics import exposition
from gateway.batching import CUT_REASONS
from gateway.control.__main__ import forget_absent
from gateway.control.changes import leased, with_variants
from gateway.control.snapshot import DesiredVersion, Serving
from gateway.fleet import LATENCY_BOUNDS_NS, Fleet
from gateway.routing import Change, Variant, first_route
from gateway.stages import TIMED_STAGES

WHY = Change(by="t", reason="t")
ROUTE = with_variants(
    first_route("m", "1", "ab" * 16, WHY),
    (
        Variant(name="primary", version="1", role="primary", weight_bp=9000),
        Variant(name="canary", version="2", role="canary", weight_bp=1000),
    ),
    WHY,
)
SERVING = Serving(
    gateway_id="00112233aabbccdd",
    generation=5,
    routes={"m": ROUTE},
    versions=(DesiredVersion(model="m", version="1", slot=0), DesiredVersion(model="m", version="2", slot=7)),
)

Samples = dict[tuple[str, ...], float]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Two workers."""
    return Fleet.create(tmp_path / "fleet", 2)


def scrape(fleet: Fleet, state_dir: Path, serving: Serving = SERVING) -> Samples:
    """Samples by name and label values, in the labels' alphabetical order."""
    body, content_type = exposition(fleet, serving, state_dir)
    assert content_type.startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_labels_are_counted_by_model(fleet: Fleet, tmp_path: Path) -> None:
    """Whatever slot they stand in, and whichever worker took them."""
    fleet.slot(0, 0)[words_of.LABELS], fleet.slot(1, 7)[words_of.LABELS] = 3, 4
    assert scrape(fleet, tmp_path)["tidegate_labels_accepted_total", "m"] == 7


def test_versions_are_summed_over_workers(fleet: Fleet, tmp_path: Path) -> None:
    """Counters of a version add up; another slot's do not leak in."""
    for index in range(2):
        words = fleet.slot(index, 7)
        words[words_of.DONE], words[words_of.FAILED] = 10, 1
        words[words_of.CANCELLED], words[words_of.EXPIRED] = 2, 3
        words[words_of.ROWS], words[words_of.CUT0 + CUT_REASONS.index("turn")] = 40, 4
        words[words_of.STAGE_NS0 + TIMED_STAGES.index("infer")] = 1_500_000_000
    fleet.slot(0, 7)[words_of.LOAD_STATE] = words_of.READY
    fleet.slot(1, 7)[words_of.LOAD_STATE] = words_of.LOAD_FAILED
    found = scrape(fleet, tmp_path)
    for kind, total in {"done": 20, "failed": 2, "cancelled": 4, "expired": 6}.items():
        assert found["tidegate_requests_total", kind, "m", "2"] == total
    assert found["tidegate_rows_total", "m", "2"] == 80
    assert found["tidegate_batches_total", "turn", "m", "2"] == 8
    assert found["tidegate_stage_seconds_sum", "m", "infer", "2"] == 3.0
    assert found["tidegate_version_ready_workers", "m", "2"] == 1
    assert found["tidegate_requests_total", "done", "m", "1"] == 0


def test_latency_buckets_are_cumulative(fleet: Fleet, tmp_path: Path) -> None:
    """Each bound counts all below it; the last is the count."""
    words = fleet.slot(0, 0)
    cell = words_of.VARIANT0
    words[cell], words[cell + 1] = len("primary"), int.from_bytes(b"primary", "little")
    for index in range(len(LATENCY_BOUNDS_NS) + 1):
        words[cell + words_of.VARIANT_LATENCY0 + index] = 1
    words[cell + words_of.VARIANT_NS] = 2_000_000_000
    found = scrape(fleet, tmp_path)
    name = "tidegate_request_seconds"
    bounds = [str(ns / 1e9) for ns in LATENCY_BOUNDS_NS]
    counts = [found[f"{name}_bucket", bound, "m", "primary", "1"] for bound in (*bounds, "+Inf")]
    assert counts == list(range(1, len(LATENCY_BOUNDS_NS) + 2))
    assert found[f"{name}_count", "m", "primary", "1"] == counts[-1]
    assert found[f"{name}_sum", "m", "primary", "1"] == 2.0


def test_fleet_and_routes(fleet: Fleet, tmp_path: Path) -> None:
    """Workers that serve, the generation published and run, weights by variant."""
    fleet.publish_generation(5)
    first, second = fleet.worker(0), fleet.worker(1)
    first[words_of.STATE], first[words_of.GENERATION] = words_of.SERVING, 5
    second[words_of.STATE], second[words_of.RING_USED_BYTES] = words_of.STARTING, 4096
    second[words_of.GAPS] = 3
    found = scrape(fleet, tmp_path)
    assert (found["tidegate_workers_up",], found["tidegate_workers",]) == (1, 2)
    assert found["tidegate_generation",] == found["tidegate_worker_generation", "0"] == 5
    assert found["tidegate_worker_ring_used_bytes", "1"] == 4096
    assert found["tidegate_worker_unlogged_numbers_total", "1"] == 3
    assert found["tidegate_route_weight_bp", "m", "primary", "1"] == 9000
    assert found["tidegate_route_weight_bp", "m", "canary", "2"] == 1000
    assert found["tidegate_route_revision", "m"] == ROUTE.revision


@pytest.mark.parametrize("content", ["", "{", '"text"', "[]", '{"lag_events": "many"}'])
def test_forwarder_status_that_cannot_be_read_breaks_no_scrape(
    fleet: Fleet, tmp_path: Path, content: str
) -> None:
    """Half written, or of another form: the rest is still there."""
    (tmp_path / "forwarder").mkdir()
    (tmp_path / "forwarder" / "status.json").write_text(content)
    found = scrape(fleet, tmp_path)
    assert ("tidegate_workers",) in found
    assert not [name for name in found if name[0].startswith("tidegate_forwarder")]


def test_forwarder_status(fleet: Fleet, tmp_path: Path) -> None:
    """Its own figures, under our names."""
    (tmp_path / "forwarder").mkdir()
    status = {"lag_events": 12, "forwarded_events": 100, "oldest_age_ms": 1500, "topic": "t"}
    (tmp_path / "forwarder" / "status.json").write_text(json.dumps(status))
    found = scrape(fleet, tmp_path)
    assert found["tidegate_forwarder_lag_events",] == 12
    assert found["tidegate_forwarder_forwarded_events",] == 100
    assert found["tidegate_forwarder_oldest_seconds",] == 1.5


@pytest.mark.parametrize("name", ["forwarder", "sidecar"])
def test_a_process_that_is_switched_off_has_no_age(fleet: Fleet, tmp_path: Path, name: str) -> None:
    """What it said while it ran is gone at the next start: its age would grow for ever, and alarm."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "status.json").write_text('{"at_ns": 1}')
    forget_absent(tmp_path, configuration.decode('{"kafka": {"bootstrap_servers": "a:1"}}'))
    assert (f"tidegate_{name}_age_seconds",) in scrape(fleet, tmp_path)
    forget_absent(tmp_path, configuration.decode('{"sidecar": {"enabled": false}}'))
    assert (f"tidegate_{name}_age_seconds",) not in scrape(fleet, tmp_path)


@pytest.mark.parametrize(("left_s", "shares"), [(60, (9000, 1000)), (-1, (10_000, 0))])
def test_weight_of_a_lease_that_is_over(
    fleet: Fleet, tmp_path: Path, left_s: int, shares: tuple[int, int]
) -> None:
    """The share shown is the share drawn: after its lease a canary has none, and the primary has all."""
    held = leased(ROUTE, time.time_ns() + left_s * 1_000_000_000)
    found = scrape(fleet, tmp_path, msgspec.structs.replace(SERVING, routes={"m": held}))
    weight = "tidegate_route_weight_bp"
    assert (found[weight, "m", "primary", "1"], found[weight, "m", "canary", "2"]) == shares


def test_the_sidecar_can_be_seen(fleet: Fleet, tmp_path: Path) -> None:
    """Its age, its ticks, how far behind it is, what it could not do, the evidence of each rollout."""
    (tmp_path / "sidecar").mkdir()
    rollouts = [{"model": "m", "version": "2", "evidence": {"failed": 7.5, "shift": 0.25}}, {"evidence": 3}]
    status = {
        "at_ns": time.time_ns() - 60 * 10**9,
        "ticks": 12,
        "incomplete_ticks": 1,
        "stale_s": 2.5,
        "pending": [{"model": "m"}],
        "rollouts": rollouts,
    }
    (tmp_path / "sidecar" / "status.json").write_text(json.dumps(status))
    samples = scrape(fleet, tmp_path)
    assert 59 < samples[("tidegate_sidecar_age_seconds",)] < 90
    assert samples[("tidegate_sidecar_ticks",)] == 12
    assert samples[("tidegate_sidecar_incomplete_ticks",)] == 1
    assert samples[("tidegate_sidecar_stale_seconds",)] == 2.5
    assert samples[("tidegate_sidecar_pending_rollbacks",)] == 1
    assert samples["tidegate_rollout_evidence", "failed", "m", "2"] == 7.5


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"rollouts": 3, "pending": 3, "at_ns": "x"}'])
def test_a_sidecar_status_that_cannot_be_read_breaks_no_scrape(
    fleet: Fleet, tmp_path: Path, content: bytes
) -> None:
    """A half-written file, or one of another version."""
    (tmp_path / "sidecar").mkdir()
    (tmp_path / "sidecar" / "status.json").write_bytes(content)
    assert ("tidegate_sidecar_age_seconds",) not in scrape(fleet, tmp_path)


def test_holds_and_latches_can_be_seen(fleet: Fleet, tmp_path: Path) -> None:
    """A frozen route, and how many versions wait for a person."""
    frozen = msgspec.structs.replace(ROUTE, frozen=True, latches={"2": WHY})
    samples = scrape(fleet, tmp_path, msgspec.structs.replace(SERVING, routes={"m": frozen}))
    assert samples["tidegate_route_frozen", "m"] == 1
    assert samples["tidegate_route_latched_versions", "m"] == 1
