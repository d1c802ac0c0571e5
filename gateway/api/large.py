"""A large binary request at the fast door: its body is put together once and stays there until it is answered.

connection -> fast -> **large** -> core. Tensors are views on it, aligned as ONNX Runtime wants them, so nothing of
the body is copied again before the model reads it. The HTTP parser sees no more than the body's beginning: of the
rest only the length is left to know.
"""

from __future__ import annotations

from typing import Any

from gateway.api.cycle import FastCycle

ALIGN_BYTES = 16
"""Where the first tensor stands in memory, as ONNX Runtime's kernels and numpy's own arrays have it."""
SMALL_BYTES = 16_384
"""Parts up to this are gathered: each kept for itself takes more than it holds."""


class LargeCycle(FastCycle):
    """A request whose body may have megabytes; its bytes count as held until it is answered.

    Args:
        json_bytes: what stands before the tensors; known from the head, so that the tensors can be put in line.
    """

    __slots__ = ("_before_bytes", "_crowd", "_held_by", "_parts", "held_bytes")

    def __init__(self, door: Any, json_bytes: int) -> None:
        super().__init__(door)
        self._before_bytes = -json_bytes % ALIGN_BYTES
        # Grows with what comes: a length that is only claimed takes no memory.
        self._parts: list[bytes | memoryview | bytearray] = [bytearray(self._before_bytes)]
        self.held_bytes = 0
        self._crowd: Any = None
        """Where its bytes count once the connection is gone."""
        self._held_by = ""

    def take(self, part: bytes | memoryview) -> None:
        """Part of the body."""
        self.held_bytes += len(part)
        if len(part) > SMALL_BYTES:
            self._parts.append(part)
        elif type(last := self._parts[-1]) is bytearray:
            last += part
        else:
            self._parts.append(bytearray(part))

    def whole(self) -> memoryview:
        """The body, when all of it is here; asked once. Cost: one copy, 0.1 ms a MB."""
        parts, self._parts = self._parts, []
        return memoryview(b"".join(parts))[self._before_bytes :]

    def orphaned(self) -> None:
        """The client is gone: what waits to run keeps the body, and counts until it lets go of it."""
        if not self.more_body and self.held_bytes:
            self.door.held_bytes -= self.held_bytes
            self._crowd, self._held_by = self.door.crowd, self.door.held_by

    def __del__(self) -> None:
        if self._crowd is not None:
            self._crowd.let_go(self.held_bytes, self._held_by)

    def reply(self, status: int, fields: bytes, body: bytes) -> None:
        """Let go of the body, and answer."""
        if self.held_bytes and not self.disconnected:
            self.door.let_go(self.held_bytes)
            self.held_bytes = 0
        super().reply(status, fields, body)

    def reply_whole(self, rest: bytes) -> bool:
        """Never: `reply` lets go of the body."""
        return False
