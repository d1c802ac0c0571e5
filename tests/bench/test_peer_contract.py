"""What every adapter must do, whoever's product it is: one test of the contract, for all that can be had here."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fake_product import Fake

from bench.peers import catalog
from bench.peers.adapters import PEERS
from bench.peers.asking import demand_right, feeds_of, session
from bench.peers.onnx_file import model_file_of
from bench.peers.peer import Begin, Peer, Unavailable
from bench.peers.posting import post


def test_the_fake_product_keeps_the_contract(tmp_path: Path) -> None:
    """The short form: no product, no network."""
    keeps_the_contract(Fake(), "mlp", tmp_path)


@pytest.mark.prove
@pytest.mark.parametrize("model", catalog.MODELS)
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_product_keeps_the_contract(peer: Peer, model: str, tmp_path: Path) -> None:
    """Right answers in every form and count of rows, with its first two settings; another version; a clean end."""
    try:
        peer.prepare(print)
    except Unavailable as exc:
        pytest.skip(f"{exc}")
    keeps_the_contract(peer, model, tmp_path)


def keeps_the_contract(peer: Peer, model: str, tmp_path: Path) -> None:
    """Start, ask, change the version, end."""
    rows = (1,) if model == "squeezenet" else (1, 8)
    for number, setting in enumerate(peer.choices[:2]):
        repository = tmp_path / f"models-{number}"
        first = catalog.write(repository, model)
        home = tmp_path / f"home-{number}"
        home.mkdir()
        running = peer.begin(
            Begin(repository=repository, model=model, home=home, setting=setting, audit=bool(peer.audit))
        )
        try:
            for form in sorted(peer.forms):
                for count in rows:
                    feeds = feeds_of(first, count, 7)
                    answer = post(running.url, peer.message(model, feeds, form))
                    demand_right(peer, session(first), feeds, answer)
            pids = running.pids()
            assert pids
            if number == 0 and model != "squeezenet":
                changes_its_version(peer, running, repository, model)
        finally:
            running.stop()
        assert running.pids() == []
        assert not [pid for pid in pids if is_alive(pid)]


def changes_its_version(peer: Peer, running, repository: Path, model: str) -> None:
    """The new version answers within a minute."""
    catalog.write(repository, model, "2", 2)
    second = model_file_of(repository, model, "2")
    running.new_version("2")
    form = sorted(peer.forms)[0]
    feeds, ran = feeds_of(second, 1, 3), session(second)
    deadline = time.monotonic() + 60
    while True:
        try:
            return demand_right(peer, ran, feeds, post(running.url, peer.message(model, feeds, form)))
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
