"""From what a person types to the inputs of an inference request. Pure.

A person writes nested JSON; the shape is read off the nesting and held against the model's
metadata, so that a mistake is named before anything is sent.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.cli.failures import Stop

_EXAMPLES: dict[str, Any] = {"BOOL": True, "BYTES": "text", "FP16": 0.5, "FP32": 0.5, "FP64": 0.5}


class Expected(msgspec.Struct, frozen=True):
    """One input as `GET /v2/models/M` describes it; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Metadata(msgspec.Struct, frozen=True):
    """The part of a model's metadata that a request needs."""

    name: str
    inputs: tuple[Expected, ...]


def request_inputs(metadata: Metadata, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The request's `inputs`, from nested JSON by input name.

    Raises:
        Stop: an input is unknown, missing, ragged or of another shape.
    """
    known = {expected.name: expected for expected in metadata.inputs}
    for name in given:
        if name not in known:
            msg = f"model {metadata.name} has no input {name!r}; it has {', '.join(known)}"
            raise Stop(msg)
    for name, expected in known.items():
        if name not in given:
            msg = f"input {name} of model {metadata.name} is missing: add {_option(expected)}"
            raise Stop(msg)
    return [_tensor(expected, given[expected.name]) for expected in metadata.inputs]


def describe(metadata: Metadata) -> str:
    """What the model expects, with a command that answers."""
    lines = [f"model {metadata.name} expects:"]
    lines += [
        f"  {expected.name}  {expected.datatype}  {list(expected.shape)}" for expected in metadata.inputs
    ]
    options = " ".join(_option(expected) for expected in metadata.inputs)
    lines.append(f"for example: tidegate predict {metadata.name} {options}")
    return "\n".join(lines)


def parse_inputs(texts: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=JSON` texts as a map.

    Raises:
        Stop: a text is not of that form.
    """
    given: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            msg = f"--input {text}: expected NAME=JSON, as in X=[[1,2,3]]"
            raise Stop(msg)
        try:
            given[name] = msgspec.json.decode(value)
        except msgspec.MsgspecError as exc:
            msg = f"--input {name}: not JSON: {exc}; expected a list, as in {name}=[[1,2,3]]"
            raise Stop(msg) from exc
    return given


def parse_document(content: bytes, metadata: Metadata) -> dict[str, Any]:
    """A `--data` document as a request.

    It is a whole request (`{"inputs": [...]}`, sent as it is), a map from input name to nested
    lists, or, for a model of one input, the nested list alone.

    Raises:
        Stop: it is none of these.
    """
    try:
        document = msgspec.json.decode(content)
    except msgspec.MsgspecError as exc:
        msg = f"--data: not JSON: {exc}"
        raise Stop(msg) from exc
    if isinstance(document, dict) and isinstance(document.get("inputs"), list):
        if all(isinstance(item, dict) and "name" in item for item in document["inputs"]):
            return document
    if isinstance(document, list) and len(metadata.inputs) == 1:
        document = {metadata.inputs[0].name: document}
    if not isinstance(document, dict):
        names = ", ".join(expected.name for expected in metadata.inputs)
        msg = f"--data: expected a request with inputs, or a map with {names}"
        raise Stop(msg)
    return {"inputs": request_inputs(metadata, document)}


def _tensor(expected: Expected, value: Any) -> dict[str, Any]:
    shape, flat = _shape_of(expected.name, value)
    if shape != expected.shape:
        shape = _fitted(expected, shape, len(flat))
    return {
        "name": expected.name,
        "datatype": expected.datatype,
        "shape": list(shape),
        "data": flat,
    }


def _shape_of(name: str, value: Any) -> tuple[tuple[int, ...], list[Any]]:
    if not isinstance(value, list):
        return (), [value]
    if not value:
        return (0,), []
    parts = [_shape_of(name, item) for item in value]
    inner = parts[0][0]
    for index, (shape, _) in enumerate(parts):
        if shape != inner:
            msg = (
                f"input {name}: element {index} has shape {list(shape)}, the first has"
                f" {list(inner)}; all must be alike"
            )
            raise Stop(msg)
    return (len(parts), *inner), [item for _, flat in parts for item in flat]


def _fitted(expected: Expected, shape: tuple[int, ...], elements: int) -> tuple[int, ...]:
    """The shape itself, or with the batch dimension that a person left out for one row."""
    for candidate in (shape, (1,) * (len(expected.shape) - len(shape)) + shape):
        if len(candidate) == len(expected.shape) and all(
            want in (-1, have) for want, have in zip(expected.shape, candidate, strict=True)
        ):
            return candidate
    msg = (
        f"input {expected.name}: got {elements} values of shape {list(shape)}, expected"
        f" {list(expected.shape)}: write {_option(expected)}"
    )
    raise Stop(msg)


def _option(expected: Expected) -> str:
    value: Any = _EXAMPLES.get(expected.datatype, 1)
    for dim in reversed(expected.shape):
        value = [value] * (1 if dim < 0 else dim)
    return f"--input '{expected.name}={msgspec.json.encode(value).decode()}'"
