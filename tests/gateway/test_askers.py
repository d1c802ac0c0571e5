"""Who asks: an address stands for it, and only a trusted proxy may say whose."""

from __future__ import annotations

import pytest

from gateway.api.askers import UNKNOWN_MAX_BYTES, Askers
from gateway.config import load
from gateway.control.access import Principal
from gateway.errors import ConfigInvalid

PEER = "192.0.2.7"


def account(proxies: tuple[str, ...], peer: str, *forwarded: bytes) -> str:
    """The account of a request with these X-Forwarded-For fields."""
    headers = [(b"host", b"a"), *((b"x-forwarded-for", value) for value in forwarded)]
    return Askers(proxies, counts=True).of(peer, headers).account


def test_what_a_client_says_of_itself_is_not_believed() -> None:
    """Without proxies, or from another address, X-Forwarded-For is anybody's word."""
    assert account((), PEER, b"6.6.6.6") == PEER
    assert account(("10.0.0.0/8",), PEER, b"6.6.6.6") == PEER


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ((b"203.0.113.9",), "203.0.113.9"),
        ((b"6.6.6.6, 203.0.113.9",), "203.0.113.9"),
        ((b"6.6.6.6", b"203.0.113.9"), "203.0.113.9"),
        ((b"6.6.6.6,\t203.0.113.9 ",), "203.0.113.9"),
        ((b"::ffff:203.0.113.9",), "203.0.113.9"),
        ((b"unknown",), "10.1.2.3"),
        ((b"203.0.113.9, ",), "10.1.2.3"),
        ((b"\xff",), "10.1.2.3"),
        ((), "10.1.2.3"),
    ],
)
def test_of_a_trusted_proxy_the_last_hop_counts(forwarded: tuple[bytes, ...], expected: str) -> None:
    """What stands before it the client may have written; what is no address is the proxy's own account."""
    assert account(("10.0.0.0/8",), "10.1.2.3", *forwarded) == expected


def test_an_ipv6_client_is_its_network() -> None:
    """The lower half of its address is the client's to choose."""
    assert account((), "2001:db8::1") == account((), "2001:db8::ffff:1") == "2001:db8::/64"
    assert account((), "2001:db8:0:1::1") != account((), "2001:db8::1")


def test_an_ipv4_proxy_is_known_on_an_ipv6_socket() -> None:
    """Mapped addresses are the IPv4 ones."""
    assert account(("127.0.0.1",), "::ffff:127.0.0.1", b"203.0.113.9") == "203.0.113.9"


def test_proxies_that_are_no_addresses_refuse_the_start() -> None:
    """The message names the setting, what was found and what is expected."""
    with pytest.raises(ConfigInvalid, match=r"data\.proxies holds 'proxy\.example'; expected addresses"):
        load(overrides=['data.proxies=["proxy.example"]'], environ={})


def test_behind_a_proxy_nobody_is_on_this_host() -> None:
    """What loopback may do without a token, clients of a proxy may not."""
    config, _ = load(overrides=['data.proxies=["127.0.0.1"]'], environ={})
    assert not config.data.on_loopback


@pytest.mark.parametrize(
    ("scopes", "forces"),
    [({"force:m"}, True), ({"force:*"}, True), ({"admin"}, True), ({"force:n"}, False), ({"infer:m"}, False)],
    ids=str,
)
def test_scope_says_who_may_name_a_variant(scopes: set[str], forces: bool) -> None:
    """Of the model that is asked; nobody without a token may."""

    class Known:
        generation = 1

        def of(self, header: bytes) -> Principal | None:
            return Principal("token:ci", frozenset(scopes)) if header == b"Bearer good" else None

    askers = Askers(tokens=Known())
    assert askers.of("10.0.0.1", [(b"authorization", b"Bearer good")]).forces("m") is forces
    for headers in ([], [(b"authorization", b"Bearer bad")], [(b"authorization", b"Bearer good")] * 2):
        assert not askers.of("10.0.0.1", headers).forces("m")


def test_long_headers_are_not_remembered() -> None:
    """1024 of 32 KiB would be 32 MiB of whoever sends them."""

    class Known:
        generation = 1

        def of(self, header: bytes) -> Principal | None:
            return None

    askers = Askers(tokens=Known())
    for size in (60, UNKNOWN_MAX_BYTES + 1, 30_000):
        askers.of("10.0.0.1", [(b"authorization", b"Bearer " + b"x" * (size - 7))])
    assert {len(header) for header in askers._unknown} == {60}
