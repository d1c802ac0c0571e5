"""What a case gets and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from bench import report
from bench.check import CHECKED_SHARE, check
from bench.models import write_mlp
from bench.paired import CHECKED_SEED, Checked, Load, Sample
from bench.requests import DISTINCT_REQUESTS, Requests, Target, Tensor
from bench.serving import Gateway, Nginx, call
from bench.wrk import Wrk

WARM_UP_S = 2.0
MLP = Tensor("X", "FP32", (-1, 30))
"""The input of the model of figures that name none: 30 FP32 inputs, two hidden layers of 256, two outputs."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is common to all cases."""

    seconds: float = 3.0
    """Of each load."""
    rounds: int = 11
    connections: int = 32
    """Per worker."""
    door: Literal["fast", "starlette"] = "fast"
    varying_heads: bool = False
    distinct: int = DISTINCT_REQUESTS
    server_cpu: int = 0
    generator_cpu: int = 1
    memory_s: float = 600.0
    """How long the case `memory` watches."""
    away_s: float = 60.0
    """How long the broker of the case `kafka-away` is away."""
    settings: tuple[str, ...] = ()
    """Further texts of `--set`."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One case's figures and all that they were made of."""

    name: str
    title: str
    rows: list[report.Row]
    details: Any = None


class Bench:
    """What cases share: options, a directory of this case alone, and a way to say how far it is."""

    def __init__(self, options: Options, scratch: Path, progress: Callable[[str], None]) -> None:
        self.options = options
        self.scratch = scratch
        self.progress = progress
        self.server_cpus = str(options.server_cpu)

    def gateway(
        self, models: Path, name: str = "state", *, workers: int = 1, settings: Sequence[str] = ()
    ) -> Gateway:
        """A gateway with everything on, pinned to the servers' processor; not started."""
        given = (f"data.door={self.options.door}", *settings, *self.options.settings)
        return Gateway(models, self.scratch / name, workers=workers, settings=given, cpus=self.server_cpus)

    def mlp(self) -> Path:
        """A repository with the MLP; returns the repository."""
        models = self.scratch / "models"
        write_mlp(models)
        return models

    def requests(self, target: Target, **options: Any) -> Requests:
        """The requests of a load."""
        options.setdefault("varying_heads", self.options.varying_heads)
        return Requests(target, count=self.options.distinct, **options)

    def wrk(self, requests: Requests, name: str = "requests") -> Wrk:
        """wrk over these requests, pinned to the generator's processor."""
        place = self.scratch / f"wrk-{name}"
        place.mkdir()
        requests.write(place / "requests")
        return Wrk(place, place / "requests", self.options.generator_cpu)

    def nginx(self, reply: bytes) -> Nginx:
        """nginx, answering everything with this JSON text."""
        return Nginx(self.scratch / "nginx", reply.decode(), self.server_cpus)


class Served:
    """One kind of request against one gateway: its load, and the replies that are checked.

    Args:
        model_file: what replies are compared with.
    """

    def __init__(
        self,
        bench: Bench,
        gateway: Gateway,
        target: Target,
        model_file: Path,
        *,
        connections: int = 0,
        **options: Any,
    ) -> None:
        self.requests = bench.requests(target, **options)
        self._model_file = model_file
        self._checked_requests = Requests(target, count=1000, seed=CHECKED_SEED)
        self.checked = Checked(gateway.data_url, self._checked_requests)
        self.wrk = bench.wrk(self.requests, f"{gateway.state_dir.name}-{target.form}-{target.rows}")
        self.load = Load(
            self.wrk,
            gateway.data_url,
            roles_of(gateway),
            connections=connections or bench.options.connections * gateway.workers,
            rows=target.rows,
            checked=self.checked,
        )

    def run(self, seconds: float) -> Sample:
        """One load."""
        return self.load.run(seconds)

    def check(self) -> int:
        """Compare what was kept with ONNX Runtime; returns how many there were."""
        return check(self._model_file, self._checked_requests, self.checked.kept)


def roles_of(gateway: Gateway) -> dict[str, list[int]]:
    """The gateway's processes by what figures call them."""
    return {
        "server": gateway.pids("worker"),
        "recorder": gateway.pids("recorder"),
        "others": [gateway.pid, *gateway.pids("control"), *gateway.pids("sidecar")],
    }


def one_reply(gateway: Gateway, requests: Requests) -> bytes:
    """The JSON text that the gateway answers the first request with."""
    body = msgspec.json.decode(requests.parts[0][0].partition(b"\r\n\r\n")[2])
    reply = call(gateway.data_url, "POST", requests.target.path, body)
    if reply.status != 200:
        msg = f"model {requests.target.model} answered {reply.status}: {reply.content}"
        raise ValueError(msg)
    return msgspec.json.encode(reply.content)


def checked_row(served: Iterable[Served]) -> report.Row:
    """Compare what was kept with ONNX Runtime, and say how much of all that was.

    Raises:
        ValueError: an answer was wrong.
    """
    compared = asked = 0
    for one in served:
        compared += one.check()
        asked += one.load.requests
    return counted_row(compared, asked)


def counted_row(compared: int, asked: int) -> report.Row:
    """How many of the replies were compared with ONNX Runtime; all were equal."""
    share = compared / asked if asked else 0.0
    name, measured = "replies compared with ONNX Runtime", f"{compared:,} of {asked:,}, all equal"
    return report.Row(name, measured, "about 1%", share >= 0.8 * CHECKED_SHARE)


def metric(gateway: Gateway, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    total = 0.0
    for line in _exposition(gateway).splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == name and all(f'{k}="{v}"' in head for k, v in labels.items()):
            total += float(value)
    return total


def _exposition(gateway: Gateway) -> str:
    import urllib.request

    token = (gateway.state_dir / "admin.token").read_text().strip()
    request = urllib.request.Request(  # noqa: S310
        f"{gateway.admin_url}/metrics", headers={"authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
        return reply.read().decode()
