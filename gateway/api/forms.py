"""Forms of a reply other than the common JSON one: binary outputs, classification.

codec (decode) makes a form when a request asks for one and puts it into `Inference.form`; `gateway.replies`
calls its `body` once the run is in the log. Any object with such a `body` is a form.

Sources: Open Inference Protocol, REST; its binary tensor data and classification extensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson

from gateway import tensors
from gateway.api.encode import RunEncoder, flat_text
from gateway.api.envelope import Parameters, refuse_reserved
from gateway.batching import Inference
from gateway.errors import InvalidRequest
from loaders.signature import Signature, TensorSpec

BINARY_FIELDS = (
    b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\n"
)
KEPT_MAX = 256
CLASSES_MAX = 65_536
"""Classes of one reply at most, all its rows together: each is a string, made on the loop."""


class Form(Protocol):
    """How a reply looks; made per request or kept, never changed."""

    def body(
        self, encoder: RunEncoder, inference: Inference, id_json: bytes, outputs: Sequence[Any], row0: int
    ) -> tuple[bytes, bytes]:
        """Body and header fields of a reply.

        Args:
            id_json: the reply's id, as JSON.
            outputs: the run's arrays, in the signature's order.
            row0: the request's first row in them.
        """


class Described(NamedTuple):
    """The protocol's reply with each output its own way. Cost: one orjson call per reply."""

    wanted: tuple[int, ...]
    """Outputs, as positions in the signature."""
    binary: tuple[bool, ...]
    classes: tuple[int, ...]
    """How many of the best classes of each; 0 for the values themselves."""

    def body(
        self, encoder: RunEncoder, inference: Inference, id_json: bytes, outputs: Sequence[Any], row0: int
    ) -> tuple[bytes, bytes]:
        """See `Form`."""
        if not any(self.classes) and all(self.binary):
            made = self._all_binary(encoder, inference, id_json, outputs, row0)
            if made is not None:
                return made
        described, parts = [], [b""]
        for i, binary, best in zip(self.wanted, self.binary, self.classes, strict=True):
            spec, array = encoder.outputs[i], outputs[i]
            datatype = spec.datatype
            if encoder.batchable:
                array = array[row0 : row0 + inference.rows]
            if best:
                datatype = "BYTES"
                array = best_classes(array, best, encoder.labels.get(spec.name), batched=encoder.batchable)
            entry: dict[str, Any] = {"name": spec.name, "datatype": datatype, "shape": array.shape}
            if binary:
                blob = tensors.to_bytes(array)
                entry["parameters"] = {"binary_data_size": len(blob)}
                parts.append(blob)
            else:
                entry["data"] = orjson.Fragment(b"[" + flat_text(array) + b"]")
            described.append(entry)
        text = encoder.head + id_json + b',"outputs":' + orjson.dumps(described) + b"}"
        if len(parts) == 1:
            return text, b"content-type: application/json\r\ncontent-length: %d\r\n" % len(text)
        parts[0] = text
        body = b"".join(parts)
        return body, BINARY_FIELDS % (len(text), len(body))

    def _all_binary(
        self, encoder: RunEncoder, inference: Inference, id_json: bytes, outputs: Sequence[Any], row0: int
    ) -> tuple[bytes, bytes] | None:
        """The same where all are numbers in binary form: the JSON is kept, but for the id. Else None."""
        rows = inference.rows
        parts = [encoder.head, id_json, b""]
        shapes = []
        for i in self.wanted:
            array = outputs[i]
            if array.dtype == object:
                return None
            if encoder.batchable:
                array = array[row0 : row0 + rows]
            shapes.append(array.shape)
            parts.append(array.tobytes())
        key = (self, *shapes)
        text = encoder.kept(key)
        if text is None:
            described = [
                {"name": spec.name, "datatype": spec.datatype, "shape": shape,
                 "parameters": {"binary_data_size": len(blob)}}
                for spec, shape, blob in zip([encoder.outputs[i] for i in self.wanted], shapes, parts[3:], strict=True)
            ]  # fmt: skip
            text = encoder.keep(key, b',"outputs":' + orjson.dumps(described) + b"}")
        parts[2] = text
        body = b"".join(parts)
        return body, BINARY_FIELDS % (len(encoder.head) + len(id_json) + len(text), len(body))


class Asked:
    """Reads what outputs a request asks for, of one signature. At most 256 answers are kept, to be equal again."""

    def __init__(self, model: str, signature: Signature) -> None:
        self._model = model
        self._outputs = signature.outputs
        self._index = {spec.name: i for i, spec in enumerate(signature.outputs)}
        self._all = tuple(range(len(signature.outputs)))
        self._forms: dict[tuple[Any, ...], Described] = {}
        self._kept: dict[tuple[int, ...], tuple[int, ...]] = {}

    def take(self, request: Any, into: Inference) -> None:
        """Set `wanted` and `form` from a request's `outputs` and `parameters`.

        Raises:
            InvalidRequest: an output that is not there or is asked twice, a parameter of the wrong kind.
        """
        everywhere = _flag(request.parameters, "binary_data_output", False, "request")
        if request.outputs is None:
            if everywhere:
                self.take_binary(into)
            return
        binary: dict[int, bool] = {}
        classes: list[int] = []
        for output in request.outputs:
            i = self._index.get(output.name)
            if i is None:
                names = ", ".join(self._index)
                msg = f"unknown output '{output.name[:100]}' for model '{self._model}'; expected {names}"
                raise InvalidRequest(msg)
            if i in binary:
                msg = f"output '{output.name}' is asked twice"
                raise InvalidRequest(msg)
            where = f"output '{output.name}'"
            if output.parameters is not None:
                refuse_reserved(output.parameters, where)
            binary[i] = _flag(output.parameters, "binary_data", everywhere, where)
            classes.append(_class_count(output.parameters, self._outputs[i]))
        if not binary:
            return
        wanted = tuple(binary)
        into.wanted = None if wanted == self._all else self._wanted(wanted)
        if any(classes) or any(binary.values()):
            into.form = self._form(wanted, tuple(binary.values()), tuple(classes))

    def take_binary(self, into: Inference) -> None:
        """All outputs, binary."""
        into.form = self._form(self._all, (True,) * len(self._all), (0,) * len(self._all))

    def _form(self, wanted: tuple[int, ...], binary: tuple[bool, ...], classes: tuple[int, ...]) -> Described:
        key = (wanted, binary, classes)
        made = self._forms.get(key)
        if made is None:
            if len(self._forms) >= KEPT_MAX:
                self._forms.clear()
            made = self._forms[key] = Described(*key)
        return made

    def _wanted(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """One object for equal tuples: replies keep what they prepared while it is the same."""
        if len(self._kept) >= KEPT_MAX:
            self._kept.clear()
        return self._kept.setdefault(wanted, wanted)


def _flag(parameters: Parameters | None, name: str, otherwise: bool, where: str) -> bool:
    value = otherwise if parameters is None else parameters.get(name, otherwise)
    if type(value) is not bool:
        msg = f"{where}: parameter {name} is {value!r:.40}; expected true or false"
        raise InvalidRequest(msg)
    return value


def _class_count(parameters: Parameters | None, spec: TensorSpec) -> int:
    """How many classes an output's `classification` asks for; 0 for its values."""
    count = 0 if parameters is None else parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        msg = f"output '{spec.name}': parameter classification is {count!r:.40}; expected a number of classes"
        raise InvalidRequest(msg)
    if count and spec.datatype in {"BYTES", "BOOL"}:
        msg = f"output '{spec.name}' is {spec.datatype}; classification needs an output of numbers"
        raise InvalidRequest(msg)
    return min(count, CLASSES_MAX)


def best_classes(array: Any, best: int, labels: Sequence[str] | None, *, batched: bool) -> Any:
    """The largest values as strings `value:index[:label]`, largest first, of equal ones the first; NaN last.

    Args:
        array: numbers; with `batched` its first dimension is rows, and each has classes of its own.
        best: how many, at most all there are.

    Returns:
        An object array of str, [rows, best] or [best].

    Raises:
        InvalidRequest: more classes than one reply may have.
    """
    rows = len(array) if batched else 1
    matrix = array.reshape(rows, array.size // rows if rows else 0)
    count = min(best, matrix.shape[1])
    if rows * count > CLASSES_MAX:
        msg = f"classification makes {count} classes for each of {rows} rows; at most {CLASSES_MAX} are made in all"
        raise InvalidRequest(msg)
    if labels is not None and len(labels) > matrix.shape[1]:
        labels = None  # More names than classes: they are not of these.
    keys = np.where(np.isnan(matrix), -np.inf, matrix) if matrix.dtype.kind == "f" else matrix
    last = matrix.shape[1] - 1
    # A stable sort of what is reversed: among equal values the first comes out on top.
    order = last - np.argsort(keys[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    # As C++'s to_string, which clients take apart at the colons: six decimals, whole numbers bare.
    text = "%f:%d" if matrix.dtype.kind == "f" else "%d:%d"
    out = np.empty((rows, count), dtype=object)
    values = np.take_along_axis(matrix, order, axis=1).tolist()
    for row, indices in enumerate(order.tolist()):
        for place, index in enumerate(indices):
            label = f":{labels[index]}" if labels is not None and index < len(labels) else ""
            out[row, place] = text % (values[row][place], index) + label
    return out if batched else out[0]
