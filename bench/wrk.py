"""wrk: the closed loop that saturates a worker.

wrk costs less per request than any generator in Python, so that one core of it saturates a worker on the other. The
requests were made before (bench.requests) and are read from a file by its Lua at the start: nothing is left to do per
request but to hand out the next one. What it says of latency is of the closed loop: it holds the queue that the
connections themselves make, and nothing of what a user would see (bench.openloop does that).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec

from gateway.errors import ConfigInvalid

_SCRIPT = """
local tails, stems, kinds, at = {}, {}, {}, 0
function init(args)
  local file = assert(io.open(args[1], "rb"))
  local function number()
    local four = file:read(4)
    if not four then return nil end
    local a, b, c, d = four:byte(1, 4)
    return a + b * 256 + c * 65536 + d * 16777216
  end
  for i = 1, number() do tails[i] = file:read(number()) end
  while true do
    local kind = number()
    if not kind then break end
    kinds[#kinds + 1] = kind
    stems[#stems + 1] = file:read(number())
  end
  file:close()
end
function request()
  at = at + 1
  if at > #stems then at = 1 end
  local kind = kinds[at]
  if kind == 0 then return stems[at] end
  return stems[at] .. tails[kind]
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


def demand(*, pinned: bool) -> None:
    """Raise ConfigInvalid unless wrk, and what pins it, is on this machine."""
    for tool in ("wrk", *(("taskset",) if pinned else ())):
        if shutil.which(tool) is None:
            msg = f"{tool} is not on this machine: install it to measure under load"
            raise ConfigInvalid(msg)


def whole_seconds(seconds: float) -> int:
    """How long wrk loads where so much is asked for: it counts whole seconds."""
    return max(1, round(seconds))


class Wrk:
    """wrk over one file of requests.

    Args:
        scratch: a directory for its script.
        cpu: the processor to pin it to, or None.

    Raises:
        ConfigInvalid: when wrk (or taskset, to pin) is not on this machine.
    """

    def __init__(self, scratch: Path, requests_file: Path, cpu: int | None) -> None:
        demand(pinned=cpu is not None)
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
            [*self._prefix, "wrk", "-t1", f"-c{connections}", f"-d{whole_seconds(seconds)}s",
             "--timeout", "10s", "-s", str(self._script), url, "--", str(self._requests_file)],
            capture_output=True, text=True, check=False, timeout=seconds + 60,
        )  # fmt: skip
        for line in done.stdout.splitlines():
            if line.startswith("WRK "):
                return msgspec.json.decode(line[4:], type=Round)
        msg = f"wrk said nothing of use: {(done.stderr or done.stdout).strip()[-300:]}"
        raise ConnectionError(msg)
