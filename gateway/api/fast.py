"""The fast door: the common inference POST from parser callback to transport write.

crowd -> leaving -> connection -> doors -> **fast** -> core. uvicorn takes this protocol class in `http=`. What is
recognised as common makes no ASGI scope, task or coroutine. One request is in flight per connection: pipelined ones
wait in the parent's queue with reading paused, so answers keep their order.

The head of a connection's last fast request is kept (gateway.api.kept): a buffer that repeats it but for lengths and
ids, and carries exactly the body that its own Content-Length says, needs no parsing. A head is kept only when one
whole message was the buffer and its body stood at the end verbatim; after 8 misses in a row the connection gives up.
"""

from __future__ import annotations

import time
from typing import Any

from gateway.api.askers import Askers
from gateway.api.connection import PIECE_BYTES
from gateway.api.crowd import Crowd, Limits
from gateway.api.cycle import FastCycle
from gateway.api.doors import Doors
from gateway.api.heads import FAST_BODY_MAX_BYTES
from gateway.api.kept import KeptHead, keep
from gateway.api.large import LargeCycle
from gateway.api.problems import reply_of
from gateway.core import Core
from gateway.errors import GatewayError
from gateway.fairness import Bodies

_MISSES_MAX = 8
_now = time.perf_counter_ns


class FastProtocol(Doors):
    """One connection of the data listener. `bind` makes the class that a worker uses."""

    core: Core

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._before: bytes | None = None
        """What stands before the kept head's first value that may differ."""
        self._before_bytes = 0
        self._behind = b""
        self._kept: KeptHead
        self._plain = False
        self._kept_cycle: FastCycle
        self._kept_has_token = False
        self._keeps_heads = True
        self._misses = 0
        self._messages = 0
        self._received_ns = 0

    @classmethod
    def bind(
        cls,
        core: Core,
        *,
        takes_fast: bool,
        connections_max: int,
        limits: Limits | None = None,
        askers: Askers | None = None,
        bodies: Bodies | None = None,
    ) -> type[FastProtocol]:
        """A class whose connections talk to `core`; with `takes_fast` False all requests go to Starlette, within
        the same limits."""
        crowd = Crowd(limits or Limits(), connections_max)
        crowd.bodies = bodies if bodies is not None and bodies.is_limited else None
        bound = {"core": core, "takes_fast": takes_fast, "crowd": crowd, "askers": askers}
        return type("BoundFastProtocol", (cls,), bound)

    # --- bytes in --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """A buffer from the socket: a repeat of the kept head, or something to parse."""
        received_ns = _now()
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        before = self._before
        if before is not None:
            cycle = self.cycle
            if (
                data.startswith(before)
                and (cycle is None or cycle.response_complete)
                and not self._reading
                and not self._deaf
                and (len(data) <= PIECE_BYTES or not self.crowd.is_spent(self.loop))
            ):
                if self._plain:
                    start = self._before_bytes
                    end = data.find(b"\r", start, start + 7)
                    digits = data[start:end]
                    if digits.isdigit() and data.startswith(self._behind, end):
                        end += len(self._behind)
                        size = int(digits)
                        if len(data) - end == size <= FAST_BODY_MAX_BYTES:
                            kept = self._kept_cycle
                            self.cycle = self._running = kept  # type: ignore[assignment]
                            kept.response_complete = False
                            self._misses = 0
                            self.core.receive(kept.head, data[end:], kept, received_ns)  # type: ignore[arg-type]
                            return
                elif (found := self._kept.read(data)) is not None:
                    kept = self._kept_cycle
                    kept.head, at = found
                    if len(data) - at <= FAST_BODY_MAX_BYTES:
                        self.cycle = self._running = kept  # type: ignore[assignment]
                        kept.response_complete = False
                        self._misses = 0
                        self.core.receive(kept.head, data[at:], kept, received_ns)  # type: ignore[arg-type]
                        return
            if not self._reading:
                self._misses += 1
                if self._misses >= _MISSES_MAX:
                    self._before = None
                    self._keeps_heads = False
        self._buffer = data
        self._messages = 0
        self._received_ns = received_ns
        self.feed(data)
        self._buffer = b""

    def on_message_complete(self) -> None:
        """A whole message is here."""
        self._reading = False
        if self._dead:
            return
        self._messages += 1
        cycle = self.cycle
        if not isinstance(cycle, FastCycle):
            super().on_message_complete()
            return
        cycle.more_body = False
        cycle.received_ns = self._received_ns
        self._filling = False
        if self._split_bytes:
            # Its own alone: a large body before it may still be worked on.
            self.let_go(self._split_bytes)
            self._split_bytes = 0
        if cycle.started:
            self._keep_head(cycle)
            self._submit(cycle)

    def _submit(self, cycle: FastCycle) -> None:
        if self._dead or self.transport.is_closing():
            return
        self._running = cycle
        head = cycle.head
        if isinstance(head, GatewayError):
            cycle.reply(*reply_of(head))
            return
        if type(cycle) is LargeCycle:
            self.core.receive_binary(head, cycle.whole(), cycle, cycle.received_ns)
            return
        self.core.receive(head, bytes(cycle.body), cycle, cycle.received_ns)

    def _keep_head(self, cycle: FastCycle) -> None:
        """Remember the head if the buffer was this one message and nothing else."""
        buffer, head = self._buffer, cycle.head
        size = len(buffer) - len(cycle.body)
        if (
            not self._keeps_heads
            or self._began_in is not buffer
            or self._messages != 1
            or not cycle.keep_alive
            or isinstance(head, GatewayError)
            or size <= 0
            or not buffer.startswith(b"POST ")
            or buffer.find(b"\r\n\r\n") != size - 4
            or not buffer.endswith(cycle.body)
        ):
            return
        kept = keep(buffer[:size], head)
        if kept is None:
            return
        self._kept, self._plain = kept, kept.plain
        self._before, self._before_bytes, self._behind = kept.before, kept.before_bytes, kept.behind
        self._kept_has_token = self._has_token
        self._kept_cycle = again = FastCycle(self)
        again.head = head
        again.started, again.more_body, again.response_complete = True, False, True

    # --- bytes out -------------------------------------------------------------------------

    def after_reply(self, cycle: FastCycle) -> None:
        """What an answer leaves to do where it was not a plain one: close, or the next that waits."""
        if not cycle.keep_alive:
            # Behind a refusal there may be more, which nobody reads.
            self._dead = isinstance(cycle.head, GatewayError)
            self.hang_up()
        else:
            self.on_response_complete()

    def _take_turn(self, cycle: FastCycle) -> None:
        cycle.started = True
        if not cycle.more_body:
            # Not from here: refusals answer at once, and a long pipeline of them would recurse.
            self.loop.call_soon(self._submit, cycle)

    # --- life ------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone. A connection and what is on it name each other: cut here, all goes at once, bodies too,
        and is not left to the garbage collector, which comes late and stops the loop."""
        if type(self._running) is LargeCycle:
            self._running.orphaned()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.cycle = self._running = self.flow = self.scope = None  # type: ignore[assignment]
        self._kept = self._kept_cycle = self._before = None  # type: ignore[assignment]
        self._feed_paused = False
        self.pipeline.clear()
        self._buffer, self._began_in = b"", None

    def forget_token(self) -> None:
        """The next head is read by the parser if it has a token, and its token looked up: it may be over by then.

        Called with each change of tokens, and once a second."""
        if self._kept_has_token:
            self._before = None

    def reap(self, now_s: float) -> None:
        """As of any connection."""
        self.forget_token()
        super().reap(now_s)

    def go_lame(self) -> None:
        """As of any connection; heads are read by the parser from now on."""
        self._before, self._keeps_heads = None, False
        super().go_lame()
