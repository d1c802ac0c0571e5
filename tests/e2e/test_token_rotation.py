"""Tokens are replaced under load: no request with a valid one fails; a revoked one opens nothing within a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.serving import Gateway, Reply, call
from tests.e2e.onnx_models import write_linear

LABEL = {"labels": [{"id": f"{7:016x}-{9:08x}-{1:016x}", "value": 1}]}
CLIENTS = 4


class Clients:
    """Asks both listeners with the present token, all the time, each request with one that is valid as it begins."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.token = ""
        self.sent = 0
        self.failed: list[tuple[str, int, Any]] = []
        self._using: dict[int, str] = {}
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(CLIENTS)]

    def _run(self, index: int) -> None:
        while not self._ending.is_set():
            self._using[index] = token = self.token
            for where, reply in (("admin", self.look(token)), ("data", self.label(token))):
                self.sent += 1
                if reply.status not in {200, 202}:
                    self.failed.append((where, reply.status, reply.content))

    def look(self, token: str) -> Reply:
        """A read of the admin listener."""
        headers = {"authorization": f"Bearer {token}"}
        return call(self._gateway.admin_url, "GET", "/admin/v1/routes/linear", None, headers)

    def label(self, token: str) -> Reply:
        """A label for the data listener, which takes none without a token."""
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        return call(self._gateway.data_url, "POST", "/v2/models/linear/feedback", LABEL, headers)

    def begin(self) -> None:
        """Once there is a token."""
        for thread in self._threads:
            thread.start()

    def await_all_use(self, token: str) -> None:
        """Until no request with an older one is under way."""
        while set(self._using.values()) != {token}:
            time.sleep(0.002)

    def end(self) -> None:
        """All of them."""
        self._ending.set()
        for thread in self._threads:
            thread.join(30)


def answered_alike(ask: Callable[[], Reply], status: int) -> None:
    """Twenty in turn are answered so, whichever worker takes them; of those that were sent a second from now or later
    every one is."""
    told_s = time.monotonic()
    alike = 0
    while alike < 20:
        sent_s = time.monotonic()
        is_so = ask().status == status
        assert is_so or sent_s < told_s + 1
        alike = alike + 1 if is_so else 0


def rotated(tmp_path: Path, rounds: int) -> Clients:
    """So many changes of a token in use; each old one is refused by both listeners within a second."""
    write_linear(tmp_path / "models")
    settings = ("data.host=0.0.0.0",)
    gateway = Gateway(tmp_path / "models", tmp_path / "state", workers=2, settings=settings).start(60)
    clients = Clients(gateway)
    try:
        older = ""
        for number in range(rounds):
            body = {"principal": "ci", "scopes": ["read", "feedback:linear"], "reason": f"turn {number}"}
            made = gateway.admin("POST", "tokens", body)
            assert made.status == 201, made
            secret = made.content["token"]
            # A worker hears of it at its next tick, each at its own.
            answered_alike(partial(clients.label, secret), 202)
            clients.token = secret
            if older:
                clients.await_all_use(secret)
                old_id, old_secret = older.split()
                assert gateway.admin("DELETE", f"tokens/{old_id}", {"reason": "replaced"}).status == 200
                assert clients.look(old_secret).status == 401
                answered_alike(partial(clients.label, old_secret), 401)
            else:
                clients.begin()
            older = f"{made.content['id']} {secret}"
    finally:
        clients.end()
        code = gateway.stop()
    assert code == 0, gateway.said()
    return clients


def test_token_is_replaced_under_load(tmp_path: Path) -> None:
    """Three times, with two workers."""
    clients = rotated(tmp_path, 3)
    assert clients.failed == []
    assert clients.sent > 50


@pytest.mark.prove
def test_token_is_replaced_often_under_load(tmp_path: Path) -> None:
    """A hundred times."""
    clients = rotated(tmp_path, 100)
    print(f"{clients.sent} requests, {len(clients.failed)} failed")
    assert clients.failed == []
