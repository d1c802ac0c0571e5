"""A model's settings held against its graph, and told in Triton's words.

model_config -> **triton** -> session. `fit` gives the tensors as clients see them and what must be reshaped between
them and the graph; `describe` gives the part of Triton's ModelConfig document that the file decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from loaders.bundle import open_regular
from loaders.errors import ModelConfigInvalid, ModelError
from loaders.model_config import CONFIG_FILE, DATATYPES, ModelConfig, TensorSettings
from loaders.signature import Signature, TensorSpec

LABELS_MAX_BYTES = 4 << 20
_TRITON = {ours: theirs for theirs, ours in DATATYPES.items()}
Shape = tuple[int, ...]


class Fitted(NamedTuple):
    """Tensors as clients see them, and shapes (without the batch) that the graph has instead, by name."""

    signature: Signature
    batch: bool
    """The settings say that dimension 0 is the batch, or say nothing and it may be."""
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]


def fit(config: ModelConfig, signature: Signature, where: str) -> Fitted:
    """Hold the settings against the graph.

    Raises:
        ModelConfigInvalid: they disagree; names both sides.
    """
    where = f"{where.partition('/')[0]}/{CONFIG_FILE}"
    sides = []
    for what, settings, specs in (
        ("input", config.inputs, signature.inputs),
        ("output", config.outputs, signature.outputs),
    ):
        by_name = {spec.name: spec for spec in specs}
        if config.max_batch_rows:
            for spec in specs:
                if not spec.shape or spec.shape[0] != -1:
                    msg = (
                        f"{where}: max_batch_size is {config.max_batch_rows}, and the graph's {what} {spec.name!r}"
                        f" has shape {list(spec.shape)}: its first dimension does not vary. Expected max_batch_size: 0"
                    )
                    raise ModelConfigInvalid(msg)
        reshapes: dict[str, Shape] = {}
        for one in settings:
            spec = by_name.get(one.name)  # type: ignore[assignment]
            if spec is None:
                msg = (
                    f"{where}: {what} {one.name[:60]!r} is not in the graph; it has"
                    f" {', '.join(repr(name) for name in by_name) or 'none'}"
                )
                raise ModelConfigInvalid(msg)
            by_name[one.name] = _fit_one(config, one, spec, f"{where}: {what} {one.name!r}", reshapes)
        sides.append((tuple(by_name[spec.name] for spec in specs), reshapes))
    (inputs, in_shapes), (outputs, out_shapes) = sides
    return Fitted(Signature(inputs, outputs), config.max_batch_rows != 0, in_shapes, out_shapes)


def _fit_one(
    config: ModelConfig, one: TensorSettings, spec: TensorSpec, where: str, reshapes: dict[str, Shape]
) -> TensorSpec:
    if one.datatype is not None and one.datatype != spec.datatype:
        msg = f"{where} is {_TRITON[one.datatype]} there, and {_TRITON[spec.datatype]} in the graph"
        raise ModelConfigInvalid(msg)
    if one.dims is None:
        return spec
    # Without max_batch_size the dims may be written either way.
    batch = bool(config.max_batch_rows)
    dims = one.dims if one.reshape is None else one.reshape
    if config.max_batch_rows is None:
        batch = len(dims) == len(spec.shape) - 1 and spec.shape[0] == -1
    graph = spec.shape[1:] if batch else spec.shape
    if len(dims) != len(graph) or any(g not in {-1, d} for d, g in zip(dims, graph, strict=True)):
        field = "dims" if one.reshape is None else "reshape"
        besides = " besides the batch" if batch else ""
        msg = f"{where} has {field} {list(dims)}, and the graph has {list(graph)}{besides}"
        raise ModelConfigInvalid(msg)
    shape = (-1, *dims) if batch else dims
    if one.reshape is None:
        return TensorSpec(spec.name, spec.datatype, shape)
    if -1 not in one.dims and -1 not in dims and prod(one.dims) != prod(dims):
        msg = f"{where}: dims {list(one.dims)} and reshape {list(dims)} have different numbers of elements"
        raise ModelConfigInvalid(msg)
    if max(one.dims.count(-1), dims.count(-1)) > 1:
        msg = f"{where}: dims {list(one.dims)} with a reshape: at most one dimension may vary"
        raise ModelConfigInvalid(msg)
    reshapes[spec.name] = (-1, *dims) if batch else dims
    return TensorSpec(spec.name, spec.datatype, (-1, *one.dims) if batch else one.dims)


def reshaping(run: Any, fitted: Fitted) -> Any:
    """A run that takes and gives the shapes of clients; `run` itself when they are the graph's.

    Cost: a view a tensor; nothing is copied.
    """
    if not fitted.inputs and not fitted.outputs:
        return run
    client = {spec.name: spec.shape for spec in fitted.signature.outputs}

    def shaped(names: Sequence[str], feeds: dict[str, Any], options: Any = None) -> list[Any]:
        inner = dict(feeds)
        for name, shape in fitted.inputs.items():
            if name in inner:
                inner[name] = inner[name].reshape(_sized(shape, inner[name]))
        given = run(names, inner, options)
        return [
            a.reshape(_sized(client[name], a)) if name in fitted.outputs else a
            for name, a in zip(names, given, strict=True)
        ]

    return shaped


def _sized(shape: Shape, array: Any) -> Shape:
    """The shape for an array; of two that vary, the first is the batch and stays."""
    return (len(array), *shape[1:]) if shape.count(-1) > 1 else shape


def read_labels(directory: Path, config: ModelConfig) -> dict[str, list[str]]:
    """Names of classes by output, from label_filename: one a line, beside config.pbtxt.

    Raises:
        ModelConfigInvalid: a file is not there, outside, or no text.
    """
    found: dict[str, list[str]] = {}
    for one in config.outputs:
        name = one.label_filename
        if not name:
            continue
        where = f"{directory.name}/{CONFIG_FILE}: output {one.name!r}: label_filename {name[:60]!r}"
        try:
            if not (directory / name).resolve().is_relative_to(directory.resolve()):
                msg = f"{where} lies outside of the model's directory"
                raise ModelConfigInvalid(msg)
            with open_regular(directory / name, where) as file:
                content = file.read(LABELS_MAX_BYTES + 1)
            if len(content) > LABELS_MAX_BYTES:
                msg = f"{where} is over {LABELS_MAX_BYTES >> 20} MiB"
                raise ModelConfigInvalid(msg)
            found[one.name] = content.decode().splitlines()
        except ModelError:
            raise
        except (OSError, ValueError, RuntimeError) as exc:
            msg = f"{where} cannot be read as text: {getattr(exc, 'strerror', None) or type(exc).__name__}"
            raise ModelConfigInvalid(msg) from exc
    return found


def describe(config: ModelConfig, fitted: Fitted, *, batchable: bool) -> dict[str, Any]:
    """What the file says, as Triton's ModelConfig in JSON; empty without a file. What it leaves out the graph tells."""
    if not config.found:
        return {}
    document: dict[str, Any] = {
        "default_model_filename": config.model_filename,
        "metric_tags": dict(config.metric_tags),
        "parameters": {key: {"string_value": value} for key, value in config.parameters.items()},
        "optimization": {"graph": {"level": config.graph_level}},
    }
    if config.policy is not None:
        kind, numbers = config.policy
        inner = {
            "latest": {"num_versions": numbers[:1] and numbers[0]},
            "specific": {"versions": list(numbers)},
        }
        document["version_policy"] = {kind: inner.get(kind, {})}
    if config.instances:
        document["instance_group"] = [{"kind": "KIND_CPU", "count": config.instances}]
    if config.warmups:
        document["model_warmup"] = [
            {"batch_size": one.batch_size, "count": one.runs} for one in config.warmups
        ]
    if config.max_batch_rows is not None:
        document["max_batch_size"] = config.max_batch_rows
    if config.max_batch_rows is not None or config.inputs or config.outputs:
        batch = bool(config.max_batch_rows) or (config.max_batch_rows is None and batchable)
        labels = {one.name: one.label_filename for one in config.outputs}
        document["input"] = [
            {**_described(spec, batch, fitted.inputs), "format": "FORMAT_NONE"}
            for spec in fitted.signature.inputs
        ]
        document["output"] = [
            {**_described(spec, batch, fitted.outputs), "label_filename": labels.get(spec.name, "")}
            for spec in fitted.signature.outputs
        ]
    if config.dynamic_batching:
        document["dynamic_batching"] = {
            "preferred_batch_size": list(config.preferred_rows),
            "max_queue_delay_microseconds": config.queue_delay_us or 0,
        }
    return document


def _described(spec: TensorSpec, batch: bool, reshapes: dict[str, Shape]) -> dict[str, Any]:
    skipped = 1 if batch and spec.shape[:1] == (-1,) else 0
    dims = list(spec.shape[skipped:])
    made: dict[str, Any] = {"name": spec.name, "data_type": _TRITON[spec.datatype], "dims": dims or [1]}
    if spec.name in reshapes:
        made["reshape"] = {"shape": list(reshapes[spec.name][skipped:])}
    elif not dims:
        # The form has no dims of length 0.
        made["reshape"] = {"shape": []}
    return made
