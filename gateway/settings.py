"""The sections of the configuration: names, bounds, defaults and what each is for, as frozen structs.

Words, not steps: `gateway/config.py` reads and checks them, docs/config.md is made from them. Defaults run on a laptop
with no file at all.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.kafka import Kafka
from gateway.routing import NAME_PATTERN, VERSION_PATTERN

Port = Annotated[int, Meta(ge=0, le=65535)]
Answer = Literal["rollback", "hold", "alert"]
ShiftSd = Annotated[float, Meta(gt=0, le=100)]
SHIFT_SD = 0.05
"""What an output may shift without being declared: canary against concurrent control, in standard deviations."""


def _is_loopback(host: str) -> bool:
    """Whether an address to listen on is this host's alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration."""


class Data(Section):
    """The data listener: inference, and feedback, which needs a token unless the address is loopback."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port; 0 takes a free one")] = 8080
    door: Annotated[
        Literal["fast", "starlette"], Meta(description="which door takes common inference requests")
    ] = "fast"
    body_max_bytes: Annotated[int, Meta(ge=1024, description="largest request body")] = 67_108_864
    bodies_max_bytes: Annotated[
        int, Meta(ge=1_048_576, description="bodies that a worker holds while they come, all together")
    ] = 268_435_456
    json_max_bytes: Annotated[
        int, Meta(ge=1024, description="JSON of one request; binary tensors may be larger")
    ] = 4_194_304
    json_max_values: Annotated[int, Meta(ge=1024, description="values in the JSON of one request")] = 262_144
    request_timeout_ms: Annotated[
        int, Meta(ge=1, le=30_000, description="deadline of a request that names none")
    ] = 1000
    keep_alive_s: Annotated[int, Meta(ge=1, description="idle connections close after")] = 75
    header_timeout_s: Annotated[int, Meta(ge=1, description="a request's head must be there in")] = 5
    body_timeout_s: Annotated[
        int, Meta(ge=1, description="a request's body must be there in, and come at 16 KiB/s after that")
    ] = 10
    write_timeout_s: Annotated[
        int, Meta(ge=1, description="a client that takes less than 16 KiB/s of its answers is cut off after")
    ] = 10
    lame_duck_s: Annotated[
        float,
        Meta(
            ge=0,
            le=8,
            description="a worker that stops tells clients with their next answers; idle ones are closed after",
        ),
    ] = 5
    connections_max: Annotated[
        int, Meta(ge=1, description="connections a worker holds; the idlest make room")
    ] = 4096
    inflight_max: Annotated[int, Meta(ge=1, description="requests a worker holds")] = 8192
    model_control: Annotated[
        bool, Meta(description="clients may load and unload models; beyond loopback with a token")
    ] = False
    proxies: Annotated[
        tuple[str, ...],
        Meta(
            description="proxies before it, addresses or networks: their X-Forwarded-For is believed, and nobody"
            " counts as being on this host"
        ),
    ] = ()
    hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="names that clients on loopback reach it by: others, without a token, change nothing"
        ),
    ] = ()

    @property
    def on_loopback(self) -> bool:
        """Whether only this host can reach it; a name that is no address and not `localhost` may be anywhere, and so
        may who comes through a proxy."""
        return not self.proxies and _is_loopback(self.host)


class AdminTls(Section):
    """TLS of the admin listener. Files that change are read again within a second; no connection is dropped."""

    cert: Annotated[str, Meta(description="certificate, and those up to its authority; PEM")]
    key: Annotated[str, Meta(description="its key, without password; PEM; not for others to read")]
    client_ca: Annotated[
        str | None,
        Meta(
            description="authorities of client certificates; who has one that tokens.toml names needs no token"
        ),
    ] = None


class Admin(Section):
    """The admin listener: routes, models, tokens, /metrics. Beyond loopback only with TLS and a token."""

    host: Annotated[
        str, Meta(description="address to listen on; others than loopback's need admin.tls and a token")
    ] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port; 0 takes a free one")] = 8081
    hosts: Annotated[
        tuple[str, ...], Meta(description="names that it is reached by, besides those of loopback")
    ] = ()
    tls: AdminTls | None = None

    @property
    def on_loopback(self) -> bool:
        """Whether only this host can reach it."""
        return _is_loopback(self.host)


class Batch(Section):
    """How requests become runs."""

    max_rows: Annotated[int, Meta(ge=1, le=65536, description="rows of one run at most")] = 256
    linger_ms: Annotated[float, Meta(ge=0, le=1000, description="longest wait for company")] = 0.0
    inline_us: Annotated[
        int, Meta(ge=0, le=5000, description="runs fitted below this go on the event loop")
    ] = 1000
    lanes: Annotated[int, Meta(ge=1, le=64, description="lane threads a worker")] = 1
    queue_max_rows: Annotated[int, Meta(ge=1, description="rows waiting for one version")] = 16384


class Session(Section):
    """ONNX Runtime."""

    providers: Annotated[tuple[str, ...], Meta(description="execution providers in order of preference")] = (
        "CPUExecutionProvider",
    )
    intra_op_threads: Annotated[
        int,
        Meta(
            ge=0,
            le=256,
            description="threads a run may use; 0: the processors left over, divided among workers and lanes",
        ),
    ] = 0
    trial_cpu_s: Annotated[
        float,
        Meta(ge=1, le=600, description="processor time of a version's trial load, and 1 s for each 20 MB"),
    ] = 8.0
    trial_memory_bytes: Annotated[
        int,
        Meta(ge=0, description="memory of a version's trial load; 0: 2 GiB, or 8 times its files if more"),
    ] = 0
    memory_max_bytes: Annotated[
        int, Meta(ge=0, description="memory that 80% of is planned for; 0: the container's, or the host's")
    ] = 0


class Audit(Section):
    """The log on this host."""

    level: Annotated[Literal["none", "spool", "fsync"], Meta(description="what a reply waits for")] = "spool"
    on_unavailable: Annotated[
        Literal["fail", "degrade"], Meta(description="when a record cannot be kept")
    ] = "degrade"
    ring: Annotated[Literal["memory", "state_dir"], Meta(description="where rings live")] = "memory"
    ring_bytes: Annotated[
        int, Meta(ge=65_536, le=2**32, description="a worker's ring, before shrinking to what is free")
    ] = 33_554_432
    append_timeout_ms: Annotated[int, Meta(ge=0, description="a reply waits for room at most")] = 50
    sync_timeout_ms: Annotated[int, Meta(ge=1, description="a reply waits for the disk at most")] = 1000
    capture_max_bytes: Annotated[
        int,
        Meta(
            ge=0, description="tensors of a request above this are logged by hash, unless more is asked for"
        ),
    ] = 65_536
    max_bytes: (
        Annotated[
            int,
            Meta(ge=1_048_576, description="spool size; default: less of 20 GiB and 20% of the disk"),
        ]
        | None
    ) = None
    segment_bytes: Annotated[int, Meta(ge=4096, description="a segment file rolls at")] = 67_108_864
    keep_h: Annotated[int, Meta(ge=1, description="segments are kept at most")] = 168


class Sidecar(Section):
    """What follows the log: labels, drift, harm, and the way back of traffic."""

    enabled: Annotated[bool, Meta(description="the gateway starts a sidecar")] = True
    clock: Annotated[
        Literal["log", "event"],
        Meta(description="time of a prediction: of its record, or its parameter `event_time_ns`"),
    ] = "log"
    tick_s: Annotated[float, Meta(ge=0.1, le=3600, description="evidence is judged once in so long")] = 10.0
    source: Annotated[
        Literal["spool", "kafka"], Meta(description="where sidecar and mirror read the log")
    ] = "spool"


class VersionPolicy(Section):
    """What was declared of one version before it was trained; the rest is the model's."""

    max_shift_sd: Annotated[
        dict[str, ShiftSd], Meta(description="expected shift by output name, in standard deviations")
    ] = {}


class Policy(Section):
    """What may move the weights of one model."""

    ramp: Annotated[
        Literal["manual", "auto", "dry-run"],
        Meta(description="auto: canaries hold a lease, which the sidecar renews"),
    ] = "manual"
    on_harm: Annotated[
        Answer, Meta(description="a canary fails or errs more often than the primary, or plainly fails")
    ] = "rollback"
    on_relative_drift: Annotated[
        Answer, Meta(description="a canary's outputs are off the primary's by more than `max_shift_sd`")
    ] = "rollback"
    max_shift_sd: Annotated[
        dict[str, ShiftSd],
        Meta(
            description=f"expected shift by output name, in standard deviations; {SHIFT_SD} where not named"
        ),
    ] = {}
    harm_margin: Annotated[
        float,
        Meta(ge=0, le=10, description="more bad events than the primary has, as a share, that is no harm"),
    ] = 0.10
    alpha: Annotated[
        float,
        Meta(
            gt=0,
            le=0.5,
            description="chance that a harmless rollout is rolled back; a tenth more for plain failures",
        ),
    ] = 0.01
    trust_routing_keys: Annotated[
        bool,
        Meta(description="requests drawn by a routing key count as evidence: only where callers are trusted"),
    ] = False
    lease_s: Annotated[
        int,
        Meta(ge=1, le=3600, description="a canary of an automatic ramp keeps its traffic without renewal"),
    ] = 15
    max_staleness_s: Annotated[int, Meta(ge=1, le=86_400, description="older evidence moves no weight")] = 60
    versions: Annotated[
        dict[Annotated[str, Meta(pattern=VERSION_PATTERN)], VersionPolicy],
        Meta(description="by version"),
    ] = {}

    def shift_sd(self, version: str, output: str) -> float:
        """How far an output of a version may be off the primary's: declared for it, for the model, or the default."""
        declared = self.versions.get(version, VersionPolicy()).max_shift_sd
        return declared.get(output, self.max_shift_sd.get(output, SHIFT_SD))


class Allowance(Section):
    """What one principal may have of a worker; several workers give it as much each."""

    per_s: Annotated[float, Meta(ge=0, le=1e9, description="so many a second; 0: any number")] = 0.0
    unit: Annotated[Literal["requests", "rows"], Meta(description="what `per_s` and `burst` count")] = (
        "requests"
    )
    burst: Annotated[int, Meta(ge=0, description="so many at once after a pause; 0: a second's")] = 0
    share_pct: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="of `data.inflight_max`, in percent, once the worker is more than half full",
        ),
    ] = 100
    bytes_max: Annotated[int, Meta(ge=0, description="of bodies in flight, together; 0: any")] = 0


class ModelShare(Section):
    """What one model may have of a worker."""

    share_pct: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="of `data.inflight_max`, in percent; and its weight where several want the lanes",
        ),
    ] = 100


class Limits(Section):
    """Who may have how much of a worker: by principal (`token:NAME`; without one its address), and by model."""

    default: Allowance = Allowance()
    principals: Annotated[dict[str, Allowance], Meta(description="by principal")] = {}
    models: Annotated[
        dict[Annotated[str, Meta(pattern=NAME_PATTERN)], ModelShare], Meta(description="by model")
    ] = {}

    @property
    def is_on(self) -> bool:
        """Whether anything is limited at all."""
        return self != Limits()


class Config(Section):
    """Everything. Paths are as given; relative ones count from the working directory."""

    models: Annotated[str, Meta(description="the model repository")] = "./models"
    state_dir: Annotated[str, Meta(description="log, control state, tokens; one gateway at a time")] = (
        "./.tidegate"
    )
    models_watch_s: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="load failed versions again whose files changed, looked at this often; 0: never",
        ),
    ] = 0.0
    workers: Annotated[int, Meta(ge=1, le=64, description="worker processes")] = 1
    data: Data = Data()
    admin: Admin = Admin()
    batch: Batch = Batch()
    session: Session = Session()
    audit: Audit = Audit()
    kafka: Kafka | None = None
    sidecar: Sidecar = Sidecar()
    limits: Limits = Limits()
    policy: Annotated[
        dict[Annotated[str, Meta(pattern=NAME_PATTERN)], Policy], Meta(description="by model")
    ] = {}

    def policy_of(self, model: str) -> Policy:
        """A model's policy; the default where the configuration names none."""
        return self.policy.get(model, _DEFAULT_POLICY)


_DEFAULT_POLICY = Policy()
