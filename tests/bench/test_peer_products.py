"""MLServer, BentoML and Ray Serve: what is sent to them, what they are started with. None is started here."""

from __future__ import annotations

import json
import tempfile
from typing import Any

import numpy as np
import pytest

from bench.peers.adapters.bentoml import BentoML
from bench.peers.adapters.mlserver import MLServer
from bench.peers.adapters.ray_serve import RayServe, place_of_sockets
from bench.peers.environment import LOCKS
from bench.peers.peer import Peer

PEERS: tuple[Peer, ...] = (MLServer(), BentoML(), RayServe())
X: dict[str, Any] = {"X": np.array([[1, 2], [3, 4]], np.float32)}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_one_two_and_four_workers_with_and_without_batches_are_tried(peer: Peer) -> None:
    """A calibration that leaves one out could miss a product's best."""
    assert {(one.workers, one.batching) for one in peer.choices} == {
        (workers, batching) for workers in (1, 2, 4) for batching in (True, False)
    }
    assert len({one.text() for one in peer.choices}) == len(peer.choices)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_claim_names_its_page(peer: Peer) -> None:
    """What is said of a product can be looked up at its makers'."""
    assert peer.sources
    assert all(one.says and one.title and one.address.startswith("https://") for one in peer.sources)


@pytest.mark.parametrize("name", ["mlserver", "bentoml", "ray_serve"])
def test_locks_hold_hashes_and_no_address(name: str) -> None:
    """What is installed is what was locked, from wherever the reader's packages come."""
    lines = (LOCKS / f"{name}.lock").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert pinned
    assert all("==" in line and line.endswith("\\") for line in pinned)
    assert not [line for line in lines if "://" in line]


def test_ray_lies_below_the_temporary_directory_where_sockets_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest of its sockets' paths has 107 characters or less, wherever TMPDIR is."""
    for place in ("/tmp", "/mnt/disk", "/" + 26 * "x", "/" + 27 * "x", "/" + 90 * "x"):
        monkeypatch.setattr(tempfile, "tempdir", place)
        chosen = place_of_sockets()
        assert chosen == (place if len(place) <= 27 else "/tmp")
        socket = f"{chosen}/ray-12345678/session_2026-11-28_23-59-59_123456_4194304/sockets/plasma_store"
        assert len(socket) <= 107


def test_mlserver_takes_no_binary_tensors() -> None:
    """Its REST interface has JSON alone; a cell of it would be of something else."""
    with pytest.raises(ValueError, match="JSON alone"):
        MLServer().message("m", X, "binary")


def test_bentoml_gets_its_only_input_as_rows() -> None:
    """A batchable API has one parameter."""
    sent = BentoML().message("m", X, "json")
    assert (sent.path, json.loads(sent.body)) == ("/predict", {"x": [[1, 2], [3, 4]]})
    with pytest.raises(ValueError, match="one parameter"):
        BentoML().message("m", {**X, "Z": X["X"]}, "json")


def test_bentoml_replies_are_columns_again() -> None:
    """Several outputs come as a list of rows, one comes bare and has no name."""
    rows = [{"label": 1, "p": [0.25, 0.75]}, {"label": 0, "p": [1, 0]}]
    found = BentoML().outputs({}, json.dumps(rows).encode())
    assert found["label"].tolist() == [1, 0]
    assert found["p"].shape == (2, 2)
    assert BentoML().outputs({}, b"[[0.5,1.5]]")[""].tolist() == [[0.5, 1.5]]
