"""What systemd is told: ready, reloading, stopping, alive. Standard library only.

`Type=notify-reload` with `WatchdogSec` (deploy/tidegate.service). Where nobody listens (`NOTIFY_SOCKET` is not set)
every call does nothing. The variables are taken out of the environment, so that no child speaks in our name; a new
image of the supervisor gets them back (`environment`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notify:
    """The supervisor's side of sd_notify(3). Never raises and never waits.

    Args:
        environ: where the variables stand; they are removed from it.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self.environment = {name: environ.pop(name) for name in _VARIABLES if name in environ}
        """The variables as they were found."""
        self._address = self.environment.get("NOTIFY_SOCKET", "")
        every_us = self.environment.get("WATCHDOG_USEC", "")
        mine = self.environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._beat_s = int(every_us) / 2e6 if every_us.isdigit() and mine else 0.0
        self._beaten_s = 0.0
        self._told: str | None = None

    def ready(self, status: str) -> None:
        """It serves; also the end of a reload."""
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def reloading(self, status: str) -> None:
        """A rolling restart or an upgrade begins; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS={status}")

    def stopping(self) -> None:
        """The drain begins."""
        self._send("STOPPING=1\nSTATUS=draining")

    def status(self, text: str) -> None:
        """One line for `systemctl status`, sent when it is another than before."""
        if text != self._told:
            self._told = text
            self._send(f"STATUS={text}")

    def beat(self, now_s: float) -> None:
        """The watchdog's sign of life, twice in its time; call it each turn."""
        if self._beat_s and now_s - self._beaten_s >= self._beat_s:
            self._beaten_s = now_s
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # "@" stands for the null byte that abstract addresses begin with.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.connect(address)
                sock.send(text.encode())
