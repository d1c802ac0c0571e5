"""Deaths beside the request path: sidecar, mirror and control are killed, no request notices and the log adds up."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from bench.serving import Gateway
from gateway.audit.event import Control
from tests.faults.watched import (
    ROUTE,
    SETTINGS,
    SWAPPED,
    Sender,
    admin,
    assert_folds_again,
    assert_mirrored,
    assert_no_hole,
    assert_none_failed,
    await_quiet,
    events_of,
    half_year,
    kill,
    load_all,
    set_route,
    until,
    write_models,
)

ROLES = ("sidecar", "mirror", "control")


def _canary(gateway: Gateway) -> tuple[str, int] | None:
    route = admin(gateway, "GET", ROUTE)
    if route is None:
        return None
    return next((v["version"], v["weight_bp"]) for v in route["variants"] if v["role"] == "canary")


def _prove(base: Path, kills: int, over_s: float, seed: int) -> None:
    """A sound canary, then a faulty one, while `kills` processes die; then the log beside what was kept."""
    write_models(base / "models")
    rng = random.Random(seed)
    roles = [ROLES[i % len(ROLES)] for i in range(kills)]
    rng.shuffle(roles)
    with Gateway(base / "models", base / "state", workers=2, settings=SETTINGS) as gateway:
        load_all(gateway)
        set_route(gateway, "2", 2_000)
        until("the mirror has begun", (gateway.state_dir / "mirror" / "positions.json").exists)
        with Sender(gateway.data_url, half_year(), over_s) as sender:
            for i, role in enumerate(roles):
                if i == kills // 2:
                    assert _canary(gateway) in {None, ("2", 2_000)}
                    set_route(gateway, SWAPPED, 5_000)
                time.sleep(rng.uniform(0, 2 * over_s / kills))
                kill(gateway, role)
            counters = sender.join()
        assert_none_failed(counters)
        until("the faulty canary is turned back", lambda: _canary(gateway) == (SWAPPED, 0))
        await_quiet(gateway, counters.answered)
        assert gateway.stop() == 0, gateway.said()
    folded = assert_folds_again(gateway, base)
    assert_mirrored(gateway)
    assert_no_hole(gateway)
    decisions = [d for one in folded.ticks for _, d in one.decisions]
    assert [(d.action, d.latched) for d in decisions if d.action == "rollback"] == [("rollback", (SWAPPED,))]
    changes = [event for event in events_of(gateway) if isinstance(event, Control)]
    assert [event.by for event in changes if event.kind == "rollback"] == ["sidecar"]
    epochs = {event.id[:25] for event in changes}
    print(  # noqa: T201
        f"\nanswered {counters.answered}, by version {dict(sender.versions())}; {len(folded.ticks)} ticks,"
        f" {len(decisions)} decisions, {len(epochs)} epochs of control"
    )
    assert "Traceback" not in gateway.log.read_text()


def test_deaths_beside_the_requests_change_no_answer_and_no_verdict(tmp_path: Path) -> None:
    """Short: nine kill -9 while 4,000 flights are answered; one decision, made once and acted on once."""
    _prove(tmp_path, kills=9, over_s=12.0, seed=1)


@pytest.mark.prove
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_many_deaths_beside_the_requests_change_no_answer_and_no_verdict(tmp_path: Path, seed: int) -> None:
    """Long: twenty kill -9, several times with other points and orders."""
    _prove(tmp_path, kills=20, over_s=30.0, seed=seed)
