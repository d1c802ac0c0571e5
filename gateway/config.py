"""The whole configuration: one frozen tree, its defaults, and its reader.

Order: defaults < TOML file < environment (`TIDEGATE_AUDIT__LEVEL`) < `--set audit.level=fsync`.
Defaults run on a laptop with no file at all. Only `load` builds a `Config`, since msgspec checks
bounds only when it converts; nothing else reads the environment. Objects get their own section.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.errors import ConfigInvalid
from gateway.kafka import Kafka
from gateway.kafka import check as check_kafka
from gateway.routing import NAME_PATTERN, VERSION_PATTERN

Port = Annotated[int, Meta(ge=0, le=65535)]
Answer = Literal["rollback", "hold", "alert"]
ShiftSd = Annotated[float, Meta(gt=0, le=100)]
SHIFT_SD = 0.05
"""What an output may shift without being declared: canary against concurrent control, in standard deviations."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Data(_Section):
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
    connections_max: Annotated[
        int, Meta(ge=1, description="connections a worker holds; the idlest make room")
    ] = 4096
    inflight_max: Annotated[int, Meta(ge=1, description="requests a worker holds")] = 8192
    model_control: Annotated[
        bool, Meta(description="clients may load and unload models; beyond loopback with publish.token")
    ] = False

    @property
    def on_loopback(self) -> bool:
        """Whether only this host can reach it; a name that is no address and not `localhost` may be anywhere."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Admin(_Section):
    """The admin listener: routes, models, /metrics. Loopback only until TLS and tokens are set."""

    host: Annotated[str, Meta(description="address to listen on; loopback")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port; 0 takes a free one")] = 8081


class Batch(_Section):
    """How requests become runs."""

    max_rows: Annotated[int, Meta(ge=1, le=65536, description="rows of one run at most")] = 256
    linger_ms: Annotated[float, Meta(ge=0, le=1000, description="longest wait for company")] = 0.0
    inline_us: Annotated[
        int, Meta(ge=0, le=5000, description="runs fitted below this go on the event loop")
    ] = 1000
    lanes: Annotated[int, Meta(ge=1, le=64, description="lane threads a worker")] = 1
    queue_max_rows: Annotated[int, Meta(ge=1, description="rows waiting for one version")] = 16384


class Session(_Section):
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


class Audit(_Section):
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


class Sidecar(_Section):
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


class VersionPolicy(_Section):
    """What was declared of one version before it was trained; the rest is the model's."""

    max_shift_sd: Annotated[
        dict[str, ShiftSd], Meta(description="expected shift by output name, in standard deviations")
    ] = {}


class Policy(_Section):
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


class Config(_Section):
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
    policy: Annotated[
        dict[Annotated[str, Meta(pattern=NAME_PATTERN)], Policy], Meta(description="by model")
    ] = {}

    def policy_of(self, model: str) -> Policy:
        """A model's policy; the default where the configuration names none."""
        return self.policy.get(model, _DEFAULT_POLICY)


_DEFAULT_POLICY = Policy()
ENV_PREFIX = "TIDEGATE_"
DEFAULT_FILE = "tidegate.toml"


def load(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> tuple[Config, dict[str, str]]:
    """Read the configuration; returns it and each set key's origin.

    Args:
        file: a TOML file; None reads ./tidegate.toml when it exists.
        overrides: "a.b=value" texts of `--set`.
        environ: the environment (tests give their own).

    Raises:
        ConfigInvalid: one line naming origin, key, what was found and what was expected.
    """
    environ = os.environ if environ is None else environ
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if file is None and Path(DEFAULT_FILE).is_file():
        file = Path(DEFAULT_FILE)
    if file is not None:
        for path, value in _leaves(_read(file)):
            _put(tree, path, value, str(file))
            origins[".".join(path)] = str(file)
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX):
            key = name[len(ENV_PREFIX) :].lower().replace("__", ".")
            _put(tree, key.split("."), _parsed(environ[name]), name)
            origins[key] = name
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            msg = f"--set {text}: expected key=value, as in audit.level=fsync"
            raise ConfigInvalid(msg)
        _put(tree, key.strip().split("."), _parsed(value), f"--set {key}")
        origins[key.strip()] = "--set"
    try:
        config = msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as exc:
        raise ConfigInvalid(_explain(str(exc), origins)) from None
    _check_across(config)
    return config, origins


def _check_across(config: Config) -> None:
    """What one key says of another."""
    if config.admin.host not in {"127.0.0.1", "::1", "localhost"}:
        msg = f"admin.host is {config.admin.host!r}: only loopback addresses are served without TLS"
        raise ConfigInvalid(msg)
    check_kafka(config.kafka)
    if config.sidecar.source == "kafka" and config.kafka is None:
        msg = (
            "sidecar.source is 'kafka', and there is no [kafka] section: set kafka.bootstrap_servers,"
            ' or sidecar.source = "spool"'
        )
        raise ConfigInvalid(msg)


def encode(config: Config) -> str:
    """The configuration as JSON, for child processes."""
    return msgspec.json.encode(config).decode()


def decode(text: str) -> Config:
    """What `encode` wrote."""
    return msgspec.json.decode(text, type=Config)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as exc:
        msg = f"config file {file}: {exc.strerror}"
        raise ConfigInvalid(msg) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        msg = f"config file {file}: not TOML: {exc}"
        raise ConfigInvalid(msg) from exc


def _leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    # Paths, not dotted texts: names of models and outputs may have dots.
    out: list[tuple[tuple[str, ...], Any]] = []
    for name, value in tree.items():
        path = (*above, name)
        # An empty section stands for itself: `[kafka.tls]` switches TLS on.
        out.extend(_leaves(value, path) if isinstance(value, dict) and value else [(path, value)])
    return out


def _parsed(text: str) -> Any:
    if text[:1] in "[{":
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    return text


def _put(tree: dict[str, Any], path: Sequence[str], value: Any, origin: str) -> None:
    *parents, leaf = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            msg = f"{origin}: {'.'.join(path)}: {parent} is a value, not a section"
            raise ConfigInvalid(msg)
    tree[leaf] = value


def _explain(text: str, origins: dict[str, str]) -> str:
    path = text.rpartition("`$.")[2].rstrip("`") if "`$." in text else ""
    unknown = text.partition("unknown field `")[2].partition("`")[0]
    found = next(
        (key for key in origins if unknown and unknown in (key.split(".")[-1], key.split(".")[0])), None
    )
    # Names that a user chose (of models, versions, outputs) are `[...]` in what msgspec says.
    form = re.escape(path).replace(re.escape("[...]"), r"\..+")
    for pattern in (form, rf"{form}\..+", form.removesuffix(r"\..+")) if path else ():
        found = found or next((key for key in origins if re.fullmatch(pattern, key)), None)
    if found is None:
        return f"config: {text.replace('`$.', '`')}"
    shown = found if "[...]" in path else path
    return f"{origins[found]}: {text.replace(f'`$.{path}`', f'`{shown}`')}"
