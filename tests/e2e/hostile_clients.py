"""Plays hostile exchanges against a gateway, and watches from beside it how the others fare.

`play` is the attack. `python -m tests.e2e.hostile_clients URL PID SECONDS RATE` is its own process: good clients at a
steady rate, whose answers are checked, and the worker's heartbeat beside the ticks of a loop that does nothing
else; it prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from gateway.fleet import HEARTBEAT_NS, Fleet
from gateway.worker import POLL_S
from tests.e2e.hostile_exchanges import Exchange
from tests.e2e.wire import infer

ALLOWED = re.compile(rb"HTTP/1\.1 (2\d\d|4\d\d|503|100) ")
ANSWER_S = 15.0
"""Every exchange is answered or closed within this time."""
WATCH_S = 0.005
LEAKS = re.compile(rb"Traceback|/tmp/|/home/|site-packages|File \"|0x[0-9a-f]{8}", re.IGNORECASE)


class Told:
    """What an attack was answered."""

    def __init__(self) -> None:
        self.statuses: collections.Counter[str] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.bad: list[str] = []

    def take(self, exchange: Exchange, data: bytes, *, closed: bool) -> None:
        """Judge all bytes that came back."""
        self.kinds[exchange.kind] += 1
        if not data:
            if exchange.ends == "stay":
                self.bad.append(
                    f"{exchange.kind}: {'closed' if closed else 'silence'} for {exchange.pieces[0][:80]!r}"
                )
            return
        for status in re.findall(rb"HTTP/1\.1 (\d+) ", data):
            self.statuses[status.decode()] += 1
        if not ALLOWED.match(data) or any(
            not ALLOWED.match(line) for line in re.findall(rb"HTTP/1\.1 [^\r]*", data)
        ):
            self.bad.append(f"{exchange.kind}: {data[:300]!r} for {exchange.pieces[0][:120]!r}")
        if LEAKS.search(data):
            self.bad.append(f"{exchange.kind}: tells {LEAKS.search(data)!r}: {data[:500]!r}")


async def play(url: str, exchanges: Iterable[Exchange], told: Told, *, at_once: int = 64) -> None:
    """Play all exchanges, `at_once` of them at a time, each on a connection of its own."""
    parts = urlsplit(url)
    sources = itertools.cycle(f"127.0.0.{i}" for i in range(2, 30))
    queue = iter(exchanges)

    async def one(exchange: Exchange) -> None:
        for _ in range(3):
            try:
                reader, writer = await asyncio.open_connection(
                    parts.hostname, parts.port, local_addr=(next(sources), 0)
                )
                break
            except OSError:
                await asyncio.sleep(0.05)
        else:
            told.bad.append("no connection")
            return
        try:
            data, closed = await _talk(exchange, reader, writer)
            told.take(exchange, data, closed=closed)
        finally:
            writer.transport.abort()

    async def some() -> None:
        for exchange in queue:
            await one(exchange)

    await asyncio.gather(*(some() for _ in range(at_once)))


async def _talk(
    exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[bytes, bool]:
    data, closed = b"", False
    deadline = time.monotonic() + ANSWER_S

    async def more(wait_s: float) -> bool:
        nonlocal data, closed
        try:
            part = await asyncio.wait_for(reader.read(65536), wait_s)
        except TimeoutError:
            return False
        except ConnectionError:
            # An answer that came before the reset is one; the reader gives it out no more.
            data += bytes(reader._buffer)  # type: ignore[attr-defined]
            closed = True
            return False
        closed = not part
        data += part
        return bool(part)

    try:
        for i, piece in enumerate(exchange.pieces):
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), ANSWER_S)
            if i + 1 < len(exchange.pieces):
                await asyncio.sleep(0)
        if exchange.ends == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return b"", True
        if exchange.ends == "half":
            writer.write_eof()
    except (ConnectionError, TimeoutError, OSError):
        pass
    while not data and not closed and time.monotonic() < deadline:
        await more(deadline - time.monotonic())
    while not closed and await more(0.02):
        pass
    return data, closed


# --- beside the attack ---------------------------------------------------------------------------


def worker_heartbeat(pid: int) -> Any:
    """The shared words of a worker's process."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    text = next(part.partition(b"=")[2] for part in raw if b"fleet_path" in part)
    return Fleet.open(Path(json.loads(text)["fleet_path"])).worker(0)


def _waited_s(pid: int) -> float:
    """How long a process's first thread was ready and had no processor."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9


async def _beside(url: str, pid: int, seconds: float, rate: float) -> dict[str, Any]:
    words = worker_heartbeat(pid)
    gaps: dict[str, list[float]] = {"worker": [], "bare": []}
    latencies: list[float] = []
    wrong: list[str] = []
    sent = 0
    parts = urlsplit(url)
    end = time.monotonic() + seconds

    async def watch() -> None:
        seen, waited_s, late_s = words[HEARTBEAT_NS], _waited_s(pid), 0.0
        before = time.monotonic()
        while before < end:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            if now - before > POLL_S / 2:
                # Beats may have been missed meanwhile.
                late_s += now - before - WATCH_S
            gaps["bare"].append(now - before - WATCH_S)
            before = now
            beat = words[HEARTBEAT_NS]
            if beat != seen:
                # Without the time that the machine gave to others, or to this watch: what the worker itself took.
                ready_s = _waited_s(pid)
                gaps["worker"].append((beat - seen) / 1e9 - POLL_S - (ready_s - waited_s) - late_s)
                seen, waited_s, late_s = beat, ready_s, 0.0

    async def client(number: int, clients: int) -> None:
        nonlocal sent
        message = infer("linear", [[1.0, 2.0, 3.0, 4.0]], f"good-{number}")
        reader = writer = None
        due = time.monotonic() + number / rate
        while (due := due + clients / rate) < end:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            sent += 1
            started = time.monotonic()
            try:
                async with asyncio.timeout(2):
                    if writer is None:
                        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                    writer.write(message)
                    assert reader is not None
                    head = await reader.readuntil(b"\r\n\r\n")
                    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                    body = await reader.readexactly(size)
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
                writer = None
                continue
            if b" 200 " in head[:20]:
                latencies.append(time.monotonic() - started)
                content = json.loads(body)
                if content["id"] != f"good-{number}" or content["outputs"][0]["data"] != [2.5, 5.0, 7.5]:
                    wrong.append(body.decode()[:300])

    async def told_to_end() -> None:
        nonlocal end
        await asyncio.to_thread(sys.stdin.read)
        end = time.monotonic()

    ending = asyncio.create_task(told_to_end())
    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(i, 16) for i in range(16)))
    await watching
    ending.cancel()
    latencies.sort()
    return {
        "sent": sent,
        "good": sum(latency < 1.0 for latency in latencies),
        "wrong": wrong[:3],
        "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1000, 1) if latencies else None,
        "worker_stall_ms": round(max(gaps["worker"], default=0) * 1000, 1),
        "bare_stall_ms": round(max(gaps["bare"], default=0) * 1000, 1),
        "worker_stalls_over_50_ms": sum(gap > 0.05 for gap in gaps["worker"]),
        "bare_stalls_over_50_ms": sum(gap > 0.05 for gap in gaps["bare"]),
    }


class Beside:
    """The process beside the attack, for so many seconds or until `told` with `now`."""

    def __init__(self, url: str, pid: int, seconds: float, rate: float) -> None:
        command = [sys.executable, "-m", "tests.e2e.hostile_clients", url, str(pid), str(seconds), str(rate)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )

    def told(self, *, now: bool = False) -> dict[str, Any]:
        """What it saw; `now` ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if now:
            self._process.stdin.close()
        out = self._process.stdout.read()
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        assert self._process.returncode == 0
        return json.loads(out)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    url_, pid_, seconds_, rate_ = sys.argv[1:]

    async def main() -> None:
        print(json.dumps(await _beside(url_, int(pid_), float(seconds_), float(rate_))), flush=True)
        # The thread that waits for the end of its input is not waited for.
        os._exit(0)

    uvloop.run(main())
