"""Settings of a model in Triton's config.pbtxt: which are honoured, which are told, which refuse the model.

repository, session -> **model_config** (pbtxt read, then this) -> triton (signature, ModelConfig). The file is optional
and lies beside the versions: <model>/config.pbtxt. A setting that would change what is computed and that we do not have
refuses the model and names its field; a field that only tunes, or that nobody here knows, is a warning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from loaders.bundle import open_regular
from loaders.errors import ModelConfigInvalid
from loaders.pbtxt import Fields, Word, read

CONFIG_FILE = "config.pbtxt"
CONFIG_MAX_BYTES = 1 << 20
DATATYPES = {
    "TYPE_BOOL": "BOOL", "TYPE_UINT8": "UINT8", "TYPE_UINT16": "UINT16", "TYPE_UINT32": "UINT32",
    "TYPE_UINT64": "UINT64", "TYPE_INT8": "INT8", "TYPE_INT16": "INT16", "TYPE_INT32": "INT32",
    "TYPE_INT64": "INT64", "TYPE_FP16": "FP16", "TYPE_FP32": "FP32", "TYPE_FP64": "FP64",
    "TYPE_STRING": "BYTES",
}  # fmt: skip
"""Triton's names of datatypes, and ours."""
_REFUSED = {
    "sequence_batching": "requests of a sequence are not kept together",
    "ensemble_scheduling": "ensembles are not served",
    "batch_input": "ragged batches are not served",
    "batch_output": "ragged batches are not served",
}
_TUNING = frozenset(("response_cache", "model_operations", "model_repository_agents", "cc_model_filenames"))
_KNOWN = frozenset(
    (
        "name", "platform", "backend", "max_batch_size", "input", "output", "version_policy", "default_model_filename",
        "dynamic_batching", "instance_group", "parameters", "optimization", "model_warmup", "metric_tags",
        "model_transaction_policy", *_TUNING, *_REFUSED,
    )
)  # fmt: skip
WARNINGS_MAX = 32
"""Told of one file."""
_PLATFORMS = frozenset(("", "onnxruntime_onnx", "onnxruntime"))


class TensorSettings(NamedTuple):
    """One input or output; `dims` without the batch when max_batch_size is above 0."""

    name: str
    datatype: str | None
    dims: tuple[int, ...] | None
    reshape: tuple[int, ...] | None
    label_filename: str = ""


class WarmupInput(NamedTuple):
    """One tensor of a warm-up request."""

    name: str
    dims: tuple[int, ...]
    random: bool


class Warmup(NamedTuple):
    """A warm-up request: so many runs of `batch_size` rows."""

    batch_size: int
    inputs: tuple[WarmupInput, ...]
    runs: int


class ModelConfig(NamedTuple):
    """What the file says; the defaults are those of a model without one.

    `policy` is ("latest", n), ("all",) or ("specific", versions …), as it stands in the file; None without.
    """

    found: bool = False
    max_batch_rows: int | None = None
    inputs: tuple[TensorSettings, ...] = ()
    outputs: tuple[TensorSettings, ...] = ()
    policy: tuple[str, tuple[int, ...]] | None = None
    model_filename: str = "model.onnx"
    queue_delay_us: int | None = None
    preferred_rows: tuple[int, ...] = ()
    dynamic_batching: bool = False
    instances: int = 0
    intra_op_threads: int | None = None
    inter_op_threads: int | None = None
    parallel: bool = False
    graph_level: int = 0
    warmups: tuple[Warmup, ...] = ()
    metric_tags: dict[str, str] = {}
    parameters: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    content: bytes = b""
    """The file, for its digest."""

    def chosen(self, versions: tuple[str, ...]) -> tuple[str, ...]:
        """Versions to be held loaded beside those of the route, of those on disk (ascending)."""
        if self.policy is None:
            return versions[-1:]
        kind, numbers = self.policy
        if kind == "all":
            return versions
        if kind == "latest":
            return versions[-max(numbers[0], 1) :]
        return tuple(version for version in versions if int(version) in numbers)


def read_config(directory: Path) -> ModelConfig:
    """Read a model's config.pbtxt; the defaults when there is none.

    Args:
        directory: <model>.

    Raises:
        ModelConfigInvalid: names the field, what was found and what is expected.
        OSError: the file cannot be read.
    """
    where = f"{directory.name}/{CONFIG_FILE}"
    try:
        with open_regular(directory / CONFIG_FILE, where) as file:
            content = file.read(CONFIG_MAX_BYTES + 1)
    except FileNotFoundError:
        return ModelConfig()
    if len(content) > CONFIG_MAX_BYTES:
        msg = f"{where} is over {CONFIG_MAX_BYTES >> 20} MiB; expected settings alone"
        raise ModelConfigInvalid(msg)
    try:
        return _Reading(directory.name, read(content.decode())).config()._replace(content=content)
    except (ValueError, RecursionError) as exc:
        msg = f"{where}: {str(exc)[:300]}"
        raise ModelConfigInvalid(msg) from exc


class _Reading:
    """One file; every `ValueError` names the field."""

    def __init__(self, model: str, fields: Fields) -> None:
        self._model = model
        self._fields = fields
        self._warnings: list[str] = []

    def config(self) -> ModelConfig:
        self._refuse()
        f = self._fields
        inputs = tuple(self._tensor(part, "input") for part in f.get("input", ()))
        outputs = tuple(self._tensor(part, "output") for part in f.get("output", ()))
        rows = _one(f, "max_batch_size", int)
        if rows is not None and rows < 0:
            msg = f"max_batch_size is {rows}; expected 0 (no batches) or more"
            raise ValueError(msg)
        batching = _one(f, "dynamic_batching", dict)
        parameters = self._parameters()
        return ModelConfig(
            found=True,
            max_batch_rows=rows,
            inputs=inputs,
            outputs=outputs,
            policy=self._policy(),
            model_filename=self._filename(),
            queue_delay_us=_one(batching or {}, "max_queue_delay_microseconds", int),
            preferred_rows=tuple(_numbers(batching or {}, "preferred_batch_size")),
            dynamic_batching=batching is not None,
            instances=self._instances(),
            intra_op_threads=_threads(parameters, "intra_op_thread_count"),
            inter_op_threads=_threads(parameters, "inter_op_thread_count"),
            parallel=parameters.get("execution_mode", "0") == "1",
            graph_level=self._graph_level(),
            warmups=tuple(self._warmup(part) for part in f.get("model_warmup", ())),
            metric_tags=_map(f, "metric_tags"),
            parameters=parameters,
            warnings=self._told(),
        )

    def _told(self) -> tuple[str, ...]:
        """Warnings, each of which is a line wherever it is told: a file may ask for anything, and a lot of it."""
        more = len(self._warnings) - WARNINGS_MAX
        told = self._warnings[:WARNINGS_MAX]
        return (*told, f"and {more} more") if more > 0 else tuple(told)

    def _refuse(self) -> None:
        f = self._fields
        name = _one(f, "name", str)
        if name not in {None, "", self._model}:
            msg = f"name is {name!r}; expected that of its directory, {self._model!r}"
            raise ValueError(msg)
        for field, why in _REFUSED.items():
            if field in f:
                msg = f"{field}: {why}"
                raise ValueError(msg)
        for field in ("platform", "backend"):
            value = _one(f, field, str) or ""
            if value not in _PLATFORMS:
                msg = f"{field} is {value[:60]!r}; only ONNX models are served (onnxruntime_onnx)"
                raise ValueError(msg)
        if _true(_one(f, "model_transaction_policy", dict) or {}, "decoupled"):
            msg = "model_transaction_policy.decoupled: a request has one reply here"
            raise ValueError(msg)
        for field in f:
            if field not in _KNOWN:
                self._warnings.append(f"{field}: not known, ignored")
            elif field in _TUNING:
                self._warnings.append(f"{field}: not used here, ignored")

    def _tensor(self, part: Any, what: str) -> TensorSettings:
        if not isinstance(part, dict):
            msg = f"{what}: expected {{ name … data_type … dims … }}"
            raise ValueError(msg)  # noqa: TRY004
        name = _one(part, "name", str)
        if not name:
            msg = f"{what}: a tensor has no name"
            raise ValueError(msg)
        kind = _one(part, "data_type", Word)
        if kind is not None and kind not in DATATYPES:
            msg = f"{what} {name!r}: data_type is {kind[:60]}; served are {', '.join(DATATYPES)}"
            raise ValueError(msg)
        if _true(part, "allow_ragged_batch"):
            msg = f"{what} {name!r}: allow_ragged_batch: ragged batches are not served"
            raise ValueError(msg)
        for field in part:
            if field not in {
                "name", "data_type", "dims", "reshape", "label_filename", "format", "optional", "is_shape_tensor",
                "is_non_linear_format_io", "allow_ragged_batch",
            }:  # fmt: skip
                self._warnings.append(f"{what} {name}: {field}: not known, ignored")
        if _true(part, "optional"):
            self._warnings.append(f"{what} {name}: optional: the graph decides which inputs may be left out")
        reshape = _one(part, "reshape", dict)
        return TensorSettings(
            name=name,
            datatype=DATATYPES[kind] if kind is not None else None,
            dims=tuple(_numbers(part, "dims")) if "dims" in part else None,
            reshape=None if reshape is None else tuple(_numbers(reshape, "shape")),
            label_filename=_one(part, "label_filename", str) or "",
        )

    def _policy(self) -> tuple[str, tuple[int, ...]] | None:
        policy = _one(self._fields, "version_policy", dict)
        if not policy:
            return None
        kind = next(iter(policy))
        inner = policy[kind][-1] if isinstance(policy[kind][-1], dict) else {}
        if kind == "latest":
            return "latest", (_one(inner, "num_versions", int) or 1,)
        if kind == "all":
            return "all", ()
        if kind == "specific":
            return "specific", tuple(_numbers(inner, "versions"))
        msg = f"version_policy: {kind[:60]!r}; expected latest, all or specific"
        raise ValueError(msg)

    def _filename(self) -> str:
        name = _one(self._fields, "default_model_filename", str) or "model.onnx"
        if "/" in name or "\0" in name or name in {".", ".."}:
            msg = f"default_model_filename is {name[:60]!r}; expected the name of a file in the version's directory"
            raise ValueError(msg)
        return name

    def _instances(self) -> int:
        count = 0
        for group in self._fields.get("instance_group", ()):
            if isinstance(group, dict):
                count += _one(group, "count", int) or 1
                if _one(group, "kind", Word) == "KIND_GPU":
                    self._warnings.append("instance_group: KIND_GPU: session.providers decides where it runs")
        return count

    def _graph_level(self) -> int:
        optimization = _one(self._fields, "optimization", dict) or {}
        for field in optimization:
            if field == "execution_accelerators":
                inner = _one(optimization, field, dict) or {}
                if "gpu_execution_accelerator" in inner:
                    msg = "optimization.execution_accelerators.gpu_execution_accelerator: set session.providers instead"
                    raise ValueError(msg)
            if field != "graph":
                self._warnings.append(f"optimization.{field}: not used here, ignored")
        level = _one(_one(optimization, "graph", dict) or {}, "level", int) or 0
        if level not in {-1, 0, 1, 2}:
            msg = (
                f"optimization.graph.level is {level}; expected -1 (basic), 0 (all), 1 (extended) or 2 (none)"
            )
            raise ValueError(msg)
        return level

    def _parameters(self) -> dict[str, str]:
        parameters = _map(self._fields, "parameters")
        for key in parameters:
            if key not in {"intra_op_thread_count", "inter_op_thread_count", "execution_mode"}:
                self._warnings.append(f"parameters {key[:60]}: not used here, ignored")
        return parameters

    def _warmup(self, part: Any) -> Warmup:
        if not isinstance(part, dict):
            msg = "model_warmup: expected { name … batch_size … inputs … }"
            raise ValueError(msg)  # noqa: TRY004
        inputs = []
        for entry in part.get("inputs", ()):
            name = _one(entry, "key", str) or ""
            value = _one(entry, "value", dict) or {}
            if "input_data_file" in value:
                self._warnings.append(f"model_warmup {name}: input_data_file: zeros are used instead")
            inputs.append(WarmupInput(name, tuple(_numbers(value, "dims")), _true(value, "random_data")))
        return Warmup(
            max(_one(part, "batch_size", int) or 1, 1), tuple(inputs), max(_one(part, "count", int) or 1, 1)
        )


def _one(fields: Any, name: str, kind: type) -> Any:
    """The last value of a field that stands once, as protobuf reads it."""
    values = fields.get(name) if isinstance(fields, dict) else None
    if not values:
        return None
    value = values[-1]
    if not isinstance(value, kind) or (kind is str and isinstance(value, Word)):
        expected = {int: "a number", str: 'text in "quotes"', dict: "{ … }", Word: "a word without quotes"}[
            kind
        ]
        msg = f"{name} is {value!r}"[:100] + f"; expected {expected}"
        raise ValueError(msg)
    return value


def _numbers(fields: Fields, name: str) -> list[int]:
    values = fields.get(name, [])
    if not all(isinstance(value, int) and -1 <= value < 1 << 62 for value in values):
        msg = f"{name} is {values!r}"[:100] + "; expected whole numbers, -1 for one that varies"
        raise ValueError(msg)
    return values


def _true(fields: Fields, name: str) -> bool:
    return str((fields.get(name) or [""])[-1]) in {"true", "True", "t", "1"}


def _map(fields: Fields, name: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for entry in fields.get(name, ()):
        key = _one(entry, "key", str)
        value = entry.get("value", [""])[-1] if isinstance(entry, dict) else ""
        if isinstance(value, dict):
            value = value.get("string_value", [""])[-1]
        if key is not None:
            out[key] = str(value)
    return out


def _threads(parameters: dict[str, str], name: str) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and int(value[:9]) <= 256):
        msg = f"parameters {name} is {value[:60]!r}; expected a number of threads, at most 256"
        raise ValueError(msg)
    return int(value)
