"""Waiting for a predecessor's ring: control, sidecar and mirror read on only once it is on disk."""

from __future__ import annotations

import pytest

from gateway.audit import drained
from gateway.audit.drained import sources_of, wait_drained
from gateway.audit.identity import source_of
from tests.gateway.audit.sim import GATEWAY_ID, Log, forget_owner, label, settle

ROLES = ("control", "sidecar", "mirror")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drained, "WAIT_S", 0.03)


def test_sources_are_those_of_one_role() -> None:
    """In order of index, and no other role's."""
    assert sources_of(GATEWAY_ID, "mirror") == tuple(source_of(GATEWAY_ID, "mirror", i) for i in range(4))
    assert len({source for role in ROLES for source in sources_of(GATEWAY_ID, role)}) == 12


@pytest.mark.parametrize("peers", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_predecessors_ring_is_waited_for(log: Log, role: str, peers: bool) -> None:
    """A ring on which the recorder is not done yet holds the start up; those set aside or of others do not."""
    recorder = log.recorder()
    dead = log.owner(role)
    dead.append_events([label(1)])
    forget_owner(dead)
    log.owner("worker")
    sources, own = sources_of(GATEWAY_ID, role), log.owner(role)
    assert own.source.index == dead.source.index
    name = own.source.ring_path.name
    assert not wait_drained(log.ring_dir, sources, name, peers=peers)
    settle(recorder)
    settle(recorder)
    (log.ring_dir / f"{dead.source.ring_path.name}.bad").write_bytes(b"\1" * 8192)
    assert wait_drained(log.ring_dir, sources, name, peers=peers)
    assert log.labels() == [1]


def test_living_peers_are_waited_for_only_where_there_may_be_none(log: Log) -> None:
    """A second sidecar in one state directory begins beside the first; a second control never does."""
    for role in ("sidecar", "control"):
        log.owner(role)
    for role, peers, begins in (("sidecar", True, True), ("control", False, False)):
        own = log.owner(role)
        assert own.source.index == 1
        name = own.source.ring_path.name
        assert wait_drained(log.ring_dir, sources_of(GATEWAY_ID, role), name, peers=peers) is begins


def test_a_dead_peers_ring_is_waited_for(log: Log) -> None:
    """Of two sidecars both died: the successor of the first waits for the second's ring, too."""
    recorder = log.recorder()
    first, second = log.owner("sidecar"), log.owner("sidecar")
    forget_owner(first)
    settle(recorder)
    settle(recorder)
    assert not first.source.ring_path.exists()
    own = log.owner("sidecar")
    name, sources = own.source.ring_path.name, sources_of(GATEWAY_ID, "sidecar")
    assert own.source.index == 0
    assert wait_drained(log.ring_dir, sources, name, peers=True)
    forget_owner(second)
    assert not wait_drained(log.ring_dir, sources, name, peers=True)
    settle(recorder)
    settle(recorder)
    assert wait_drained(log.ring_dir, sources, name, peers=True)
