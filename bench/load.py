"""Load: distinct inference requests, thrown by wrk in a closed loop.

wrk costs less per request than any generator in Python, so that one core of it saturates a worker
on the other. Requests are built here, written to one file, and read by wrk's Lua at its start:
nothing is left to do per request but to hand out the next one. Nothing here knows the gateway; the
same file is thrown at nginx.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import msgspec

from gateway.errors import ConfigInvalid

DISTINCT_REQUESTS = 10_000
_LENGTH = struct.Struct("<I")

_SCRIPT = """
local requests, at = {}, 0
function init(args)
  local file = assert(io.open(args[1], "rb"))
  while true do
    local head = file:read(4)
    if not head then break end
    local a, b, c, d = head:byte(1, 4)
    requests[#requests + 1] = file:read(a + b * 256 + c * 65536 + d * 16777216)
  end
  file:close()
end
function request()
  at = at + 1
  if at > #requests then at = 1 end
  return requests[at]
end
function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    '\\nWRK {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"max_us":%d,' ..
    '"socket_errors":%d,"status_errors":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    latency.max, e.connect + e.read + e.write + e.timeout, e.status))
end
"""


class Target(msgspec.Struct, frozen=True):
    """What one request asks: a model with one FP32 input of `width` values a row."""

    model: str
    input_name: str
    width: int

    @property
    def path(self) -> str:
        """Where the requests go."""
        return f"/v2/models/{self.model}/infer"


class Round(msgspec.Struct, frozen=True):
    """What wrk saw. Latencies are of the closed loop: they hold queueing at saturation."""

    requests: int
    duration_us: int
    p50_us: int
    p99_us: int
    max_us: int
    socket_errors: int
    status_errors: int

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return self.requests / (self.duration_us / 1e6)


def body(target: Target, request_id: str, values: list[float]) -> bytes:
    """One row as Open Inference Protocol JSON."""
    return (
        f'{{"id":"{request_id}","inputs":[{{"name":"{target.input_name}","datatype":"FP32",'
        f'"shape":[1,{target.width}],"data":{msgspec.json.encode(values).decode()}}}]}}'
    ).encode()


def random_row(rng: random.Random, width: int) -> list[float]:
    """Values with six decimals about zero, as scaled features look."""
    return [round(rng.uniform(-3.0, 3.0), 6) for _ in range(width)]


def write_requests(
    path: Path,
    target: Target,
    *,
    count: int = DISTINCT_REQUESTS,
    varying_heads: bool = False,
    seed: int = 1,
) -> None:
    """Write `count` whole, distinct HTTP requests to `path` in the form that the Lua part reads.

    Args:
        varying_heads: give each its own traceparent and x-request-id, so that no two heads repeat.
    """
    rng = random.Random(seed)  # noqa: S311
    with path.open("wb") as file:
        for i in range(count):
            # All ids have one width, so that heads repeat unless they are asked to vary.
            content = body(target, f"r-{i:06d}", random_row(rng, target.width))
            extra = ""
            if varying_heads:
                extra = (
                    f"traceparent: 00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01\r\n"
                    f"x-request-id: {rng.getrandbits(128):032x}\r\n"
                )
            head = (
                f"POST {target.path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\n"
                f"content-type: application/json\r\n{extra}content-length: {len(content)}\r\n\r\n"
            )
            request = head.encode() + content
            file.write(_LENGTH.pack(len(request)) + request)


class Wrk:
    """wrk over one file of requests.

    Args:
        scratch: a directory for its script.
        cpu: the processor to pin it to, or None.

    Raises:
        ConfigInvalid: when wrk (or taskset, to pin) is not on this machine.
    """

    def __init__(self, scratch: Path, requests_file: Path, cpu: int | None) -> None:
        for tool in ("wrk", *(("taskset",) if cpu is not None else ())):
            if shutil.which(tool) is None:
                msg = f"{tool} is not on this machine: install it to measure under load"
                raise ConfigInvalid(msg)
        self._script = scratch / "load.lua"
        self._script.write_text(_SCRIPT)
        self._requests_file = requests_file
        self._prefix = [] if cpu is None else ["taskset", "-c", str(cpu)]

    def run(self, url: str, *, connections: int, seconds: float) -> Round:
        """Throw requests at `url` (scheme, host, port) for `seconds`.

        Raises:
            ConnectionError: when wrk could not connect at all.
        """
        done = subprocess.run(  # noqa: S603
            [*self._prefix, "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s",
             "--timeout", "10s", "-s", str(self._script), url, "--", str(self._requests_file)],
            capture_output=True, text=True, check=False, timeout=seconds + 60,
        )  # fmt: skip
        for line in done.stdout.splitlines():
            if line.startswith("WRK "):
                return msgspec.json.decode(line[4:], type=Round)
        msg = f"wrk said nothing of use: {(done.stderr or done.stdout).strip()[-300:]}"
        raise ConnectionError(msg)
