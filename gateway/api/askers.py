"""Who asks: the principal whose token a request has, and its account where `[limits]` limits anyone.

doors -> **askers** -> head -> core (fairness). Inference may be anonymous: a token that is not known is as none.
Without one an address stands for who asks: the connection's other side, or what a trusted proxy says of it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

ANONYMOUS = "anonymous"
"""The principal of a request without a token."""
IPV6_BITS = 64
"""Of an IPv6 address so much is one client: the rest is the client's to choose."""
UNKNOWN_MAX = 1024
"""So many headers whose token is not known are remembered: to find that out takes a look at every token."""
UNKNOWN_MAX_BYTES = 1024
"""Longer ones are not: they are looked at no further."""


class Principal(Protocol):
    """Whose token it is; see `gateway.control.access`."""

    @property
    def name(self) -> str:
        """As it stands in the log."""

    def forces(self, model: str) -> bool:
        """Whether it may name the variant of a model that answers."""


class Asker(NamedTuple):
    """Who asks: its name in the log, what it is counted on (empty where nobody is limited), and what it may."""

    principal: str
    account: str
    known: Principal | None = None

    def forces(self, model: str) -> bool:
        """Whether its token lets it name the variant of a model that answers."""
        return self.known is not None and self.known.forces(model)


NOBODY = Asker(ANONYMOUS, "")


class Known(Protocol):
    """The tokens that this process knows; see `gateway.control.tokens`."""

    generation: int

    def of(self, header: bytes) -> Principal | None:
        """The principal of an Authorization header; None: not known, or over."""


class Askers:
    """Says who asks.

    Args:
        proxies: addresses or networks whose X-Forwarded-For is believed, its last hop: that one the proxy wrote.
        counts: whether somebody is limited, so that accounts are needed.
        tokens: None where none are known.

    Threading: the loop thread.
    """

    def __init__(
        self, proxies: Sequence[str] = (), *, counts: bool = False, tokens: Known | None = None
    ) -> None:
        self._proxies = tuple(ipaddress.ip_network(text, strict=False) for text in proxies)
        self.is_proxy = lru_cache(4096)(self._is_proxy)
        self.counts = counts
        self._tokens = tokens
        self._unknown: set[bytes] = set()
        self._generation = -1

    def of(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> Asker:
        """Who asks, of a request with these headers (names in lower case).

        Args:
            peer: address of the connection's other side.
        """
        given = [value for name, value in headers if name == b"authorization"]
        principal = self._principal(given[0]) if len(given) == 1 and self._tokens is not None else None
        if not self.counts:
            return NOBODY if principal is None else Asker(principal.name, "", principal)
        if principal is not None:
            return Asker(principal.name, principal.name, principal)
        return Asker(ANONYMOUS, self._address(peer, headers))

    def _principal(self, header: bytes) -> Principal | None:
        tokens = self._tokens
        assert tokens is not None  # noqa: S101
        if tokens.generation != self._generation:
            self._generation = tokens.generation
            self._unknown.clear()
        if header in self._unknown:
            return None
        found = tokens.of(header)
        if found is not None or len(header) > UNKNOWN_MAX_BYTES:
            return found
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.clear()
        self._unknown.add(header)
        return None

    def _address(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        if self._proxies and self.is_proxy(peer):
            said = [value for name, value in headers if name == b"x-forwarded-for"]
            if said:
                hop = said[-1].rpartition(b",")[2].strip(b" \t").decode("latin-1")
                return client_of(hop) or client_of(peer) or peer
        return client_of(peer) or peer

    def _is_proxy(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._proxies)


@lru_cache(4096)
def client_of(text: str) -> str | None:
    """One client's name: an IPv4 address, or the network that an IPv6 client chooses its addresses from; None: `text`
    is no address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return str(mapped)
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address) >> IPV6_BITS << IPV6_BITS, IPV6_BITS)))
