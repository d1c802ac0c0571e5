"""Requests with a token at the fast door: looked up once, kept with the head, forgotten when tokens change."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import msgspec
import uvicorn
from uvicorn.server import ServerState

from gateway.api.askers import UNKNOWN_MAX, Askers
from gateway.api.cycle import FastCycle
from gateway.api.fast import FastProtocol
from tests.gateway.test_fast_door import BODY, Transport


class Tokens:
    """One live token, until it is revoked; counts what it was asked."""

    def __init__(self) -> None:
        self.generation = 1
        self.live = {b"Bearer good": "token:ci"}
        self.asked = 0

    def of(self, header: bytes) -> Any:
        self.asked += 1
        name = self.live.get(header)
        return None if name is None else SimpleNamespace(name=name)


class Core:
    """Answers at once, and keeps who asked."""

    def __init__(self) -> None:
        self.principals: list[str] = []
        self.heads: list[Any] = []

    def caller(self, endpoint: str, protocol: str, principal: str | None) -> msgspec.Raw:
        return msgspec.Raw(json.dumps(principal).encode())

    def receive(self, head: Any, body: bytes, sink: Any, received_ns: int) -> None:
        assert body == BODY
        assert isinstance(sink, FastCycle)
        self.principals.append(json.loads(bytes(head.caller)))
        self.heads.append(head)
        sink.reply(200, b"content-length: 0\r\n", b"")


def request(*fields: bytes) -> bytes:
    """A request with these fields."""
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\n%bcontent-length: %d\r\n\r\n" % (
        lines, len(BODY),
    ) + BODY  # fmt: skip


GOOD = request(b"Authorization: Bearer good")


def connect(core: Core, askers: Askers) -> FastProtocol:
    """A connection."""
    settings = uvicorn.Config(app=None, log_config=None, server_header=False)
    settings.load()
    door = FastProtocol.bind(core, takes_fast=True, connections_max=4, askers=askers)  # type: ignore[arg-type]
    made = door(settings, ServerState(), {}, _loop=asyncio.get_running_loop())
    made.connection_made(Transport())  # type: ignore[arg-type]
    return made


def test_a_token_names_its_principal_and_is_looked_up_once() -> None:
    """It goes the fast way, and repeated heads ask nothing."""

    async def main() -> None:
        core, tokens = Core(), Tokens()
        door = connect(core, Askers(tokens=tokens))
        for _ in range(5):
            door.data_received(GOOD)
        assert core.principals == ["token:ci"] * 5
        assert tokens.asked == 1
        assert len({id(head) for head in core.heads}) == 1

    asyncio.run(main())


def test_what_is_no_token_of_ours_is_anonymous() -> None:
    """Unknown, of another scheme, or given twice: inference needs none. What is unknown is remembered."""

    async def main() -> None:
        core, tokens = Core(), Tokens()
        door = connect(core, Askers(tokens=tokens))
        for fields in (
            (b"Authorization: Bearer bad",),
            (b"Authorization: Basic Z29vZA==",),
            (b"Authorization: Bearer good", b"Authorization: Bearer good"),
            (),
        ):
            door.data_received(request(*fields))
        assert core.principals == ["anonymous"] * 4
        asked = tokens.asked
        askers = Askers(tokens=tokens)
        for _ in range(3):
            askers.of("", [(b"authorization", b"Bearer bad")])
        assert tokens.asked == asked + 1
        for number in range(2 * UNKNOWN_MAX):
            askers.of("", [(b"authorization", b"Bearer %d" % number)])
        assert len(askers._unknown) <= UNKNOWN_MAX

    asyncio.run(main())


def test_a_revoked_token_is_forgotten_with_its_kept_head() -> None:
    """A change of tokens, and each second, make the next head read anew; heads without a token stay."""

    async def main() -> None:
        core, tokens = Core(), Tokens()
        door, other = (connect(core, Askers(tokens=tokens)) for _ in range(2))
        door.data_received(GOOD)
        door.data_received(GOOD)
        tokens.live.clear()
        tokens.generation += 1
        door.forget_token()
        door.data_received(GOOD)
        assert core.principals == ["token:ci", "token:ci", "anonymous"]

        tokens.live[b"Bearer good"] = "token:ci"
        tokens.generation += 1
        door.reap(asyncio.get_running_loop().time())
        door.data_received(GOOD)
        assert core.principals[-1] == "token:ci"

        other.data_received(request())
        before = other._before
        assert before is not None
        other.forget_token()
        assert other._before is before

    asyncio.run(main())


def test_accounts_are_named_where_somebody_is_limited() -> None:
    """By the token, else by the address; a kept head keeps its account."""

    async def main() -> None:
        core, tokens = Core(), Tokens()
        door = connect(core, Askers(counts=True, tokens=tokens))
        door.client = ("192.0.2.7", 5)
        door.data_received(GOOD)
        door.data_received(request())
        door.data_received(request())
        assert [head.account for head in core.heads] == ["token:ci", "192.0.2.7", "192.0.2.7"]

    asyncio.run(main())
