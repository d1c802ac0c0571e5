"""Whether a connection is read: uvicorn's flow control, held by what waits on the connection."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """uvicorn's, but reading goes on only when nothing waits on this connection: the ASGI cycle asks too early."""

    def __init__(self, door: Any) -> None:
        super().__init__(door.transport)
        self._door = door

    def resume_reading(self) -> None:
        """Read on, unless a request, a buffer or answers wait, or the connection rests."""
        door = self._door
        if (
            self.read_paused
            and not door.pipeline
            and door.unfed is None
            and not self.write_paused
            and not door.resting
        ):
            super().resume_reading()
