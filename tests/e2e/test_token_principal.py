"""Tokens at both doors of the data listener: who has one is its principal, and no longer than the token lives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.serving import Gateway
from tests.e2e.onnx_models import write_linear
from tests.e2e.wire import Wire, infer

ROW = [[1.0, 2.0, 3.0, 4.0]]
REVOKED_WITHIN_S = 1.0
SETTINGS = ('limits.default={"per_s":0.001,"burst":1}', 'limits.principals={"token:ci":{}}')


@pytest.fixture(params=["fast", "starlette"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gateway]:
    """One request for each address, any number for the principal `ci`."""
    write_linear(tmp_path / "models")
    made = Gateway(
        tmp_path / "models", tmp_path / "state", settings=(f"data.door={request.param}", *SETTINGS)
    )
    with made:
        yield made


def test_a_token_is_its_principal_until_it_is_revoked(gateway: Gateway) -> None:
    """With the token a connection has the principal's limits; a second after it is revoked it has the address's,
    though the connection repeats its head."""
    with Wire(gateway.data_url) as wire:
        anonymous = infer("linear", ROW)
        assert [wire.exchange(anonymous).status for _ in range(2)] == [200, 429]
    made = gateway.admin(
        "POST", "tokens", {"principal": "ci", "scopes": ["read"], "expires_ns": None, "reason": "test"}
    )
    assert made.status in (200, 201), made
    mine = infer("linear", ROW, authorization=f"Bearer {made.content['token']}")
    with Wire(gateway.data_url) as wire:
        made_s = time.monotonic()
        while True:
            sent_s = time.monotonic()
            if wire.exchange(mine).status == 200:
                break
            assert sent_s < made_s + REVOKED_WITHIN_S, "the token was not known in time"
        assert [wire.exchange(mine).status for _ in range(50)] == [200] * 50
        gone = gateway.admin("DELETE", f"tokens/{made.content['id']}", {"reason": "test"})
        assert gone.status in (200, 204), gone
        gone_s = time.monotonic()
        while True:
            sent_s = time.monotonic()
            if wire.exchange(mine).status != 200:
                break
            assert sent_s < gone_s + REVOKED_WITHIN_S, "the revoked token was taken for too long"
        assert wire.exchange(mine).status == 429
