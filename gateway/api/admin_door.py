"""The admin listener's connections: the limits of the data listener's, for a listener that few people use.

transport -> **admin_door** -> doors -> connection -> Starlette, `gateway.api.admin`. Heads, bodies, time and the number
of connections are bounded, so that whoever reaches the listener cannot hold control up; what a client certificate says
of who asks goes along with each request.
"""

from __future__ import annotations

import math
import ssl
import time
from typing import Any

from gateway.api.crowd import Crowd, Limits
from gateway.api.cycle import FastCycle
from gateway.api.doors import Doors
from gateway.api.guarding import CERTIFICATE
from gateway.api.problems import reply_of
from gateway.errors import GatewayError

CONNECTIONS_MAX = 256
BODY_MAX_BYTES = 1_048_576
LIMITS = Limits(
    body_max_bytes=BODY_MAX_BYTES,
    bodies_max_bytes=16 * BODY_MAX_BYTES,
    json_max_bytes=BODY_MAX_BYTES,
)
_NAMES = frozenset(("DNS", "URI", "email"))


class AdminDoor(Doors):
    """One connection of the admin listener. `bind` makes the class that a control process uses.

    Threading: the loop thread; `reap` is called about once a second.
    """

    core = None
    takes_fast = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._certified: tuple[str, ...] = ()
        self._certified_until_s = math.inf
        self._is_tls = False

    @classmethod
    def bind(cls, *, limits: Limits = LIMITS, connections_max: int = CONNECTIONS_MAX) -> type[AdminDoor]:
        """A class whose connections share their limits."""
        return type("BoundAdminDoor", (cls,), {"crowd": Crowd(limits, connections_max)})

    def connection_made(self, transport: Any) -> None:
        """A client; over TLS its handshake is done."""
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        certificate = transport.get_extra_info("peercert") or {}
        self._certified = names_of(certificate)
        if "notAfter" in certificate:
            self._certified_until_s = ssl.cert_time_to_seconds(certificate["notAfter"])
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """A buffer from the socket."""
        self._unset_keepalive_if_required()
        self._buffer = data
        self.feed(data)
        self._buffer = b""

    def idle_since(self, now_s: float) -> float:
        """As of any. And who sends a head without an end, or a body that was refused already, makes room for others: a
        few hundred of those, who need no token for it, would keep operators out."""
        cycle = self.cycle
        waits = cycle is None or cycle.response_complete
        if self._reading and waits and not self._deaf and self.unfed is None:
            return self._active_s
        return super().idle_since(now_s)

    def on_message_complete(self) -> None:
        """A whole message is here."""
        self._reading = False
        if not self._dead:
            super().on_message_complete()

    def begin_scope(self) -> None:
        """As of any; who the certificate says that asks stands in it, as long as that holds."""
        super().begin_scope()
        # A connection may be kept for longer than its certificate lasts.
        if self._certified and time.time() <= self._certified_until_s:
            self.scope["extensions"] = {CERTIFICATE: {"names": self._certified}}

    def after_reply(self, cycle: FastCycle) -> None:
        """A refusal is written: nothing of what stands behind it is read."""
        self._dead = True
        self.hang_up()

    def _take_turn(self, cycle: FastCycle) -> None:
        if not self.transport.is_closing() and isinstance(cycle.head, GatewayError):
            # The refusal of a message that stood behind others.
            cycle.reply(*reply_of(cycle.head))

    def hang_up(self) -> None:
        """As of any; TLS has no half-closed connections: what was written is flushed and the connection ends."""
        if self._is_tls:
            self._deaf, self.unfed = True, None
            self.transport.close()
        else:
            super().hang_up()


def names_of(certificate: dict[str, Any]) -> tuple[str, ...]:
    """The names that a verified certificate (as `ssl` gives it) is for: its alternative names, its common name where it
    has none."""
    names = tuple(str(value) for kind, value in certificate.get("subjectAltName", ()) if kind in _NAMES)
    if names:
        return names
    subject = [pair for rdn in certificate.get("subject", ()) for pair in rdn]
    return tuple(str(value) for kind, value in subject if kind == "commonName")
