"""`tidegate predict`: one request to a running gateway, from the shell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.cli.client import Answer, Client, data_options, quoted
from gateway.cli.failures import UNREACHABLE, Stop
from gateway.cli.screen import json_option, print_json, say, table
from gateway.cli.tensors import (
    Metadata,
    describe,
    parse_document,
    parse_inputs,
    request_inputs,
)


@click.command("predict")
@click.argument("model")
@click.option("--version", metavar="V", help="Ask this version, past the route.")
@click.option("--variant", metavar="NAME", help="Ask this variant of the route, past the draw.")
@click.option("--input", "inputs", metavar="NAME=JSON", multiple=True, help="Values of one input.")
@click.option("--data", "data_file", metavar="FILE", help="A JSON file with the inputs; - reads stdin.")
@click.option("--routing-key", metavar="KEY", help="Same key, same version, while weights stand.")
@data_options
@json_option
def command(
    model: str,
    version: str | None,
    variant: str | None,
    inputs: tuple[str, ...],
    data_file: str | None,
    routing_key: str | None,
    as_json: bool,
    data: Client,
) -> None:
    """Ask MODEL for an answer.

    Without inputs it says what the model expects, with an example.
    """
    path = f"/v2/models/{quoted(model)}" + (f"/versions/{quoted(version)}" if version else "")
    metadata = _metadata(data.get(path))
    if inputs and data_file is not None:
        msg = "--input and --data are both given; one of them holds the inputs"
        raise Stop(msg)
    if data_file is not None:
        request = parse_document(_read(data_file), metadata)
    elif inputs:
        request = {"inputs": request_inputs(metadata, parse_inputs(inputs))}
    else:
        raise Stop(describe(metadata))
    if version is not None and variant is not None:
        msg = "--version and --variant are both given; one of them is asked past the draw"
        raise Stop(msg)
    given = {"x-routing-key": routing_key, "x-tidegate-variant": variant}
    headers = {name: value for name, value in given.items() if value is not None}
    answer = data.send("POST", f"{path}/infer", headers=headers, body=request)
    prediction_id = answer.headers.get("x-prediction-id")
    audit = answer.headers.get("x-tidegate-audit")
    if as_json:
        print_json({**answer.body, "prediction_id": prediction_id, "audit": audit})
        return
    outputs = answer.body.get("outputs", [])
    table(("row", *(output["name"] for output in outputs)), _rows(outputs))
    say(f"answered by {model} version {answer.body.get('model_version', '?')}")
    say(f"prediction {prediction_id or '-'} (audit: {audit or '-'})")


def _metadata(answer: Answer) -> Metadata:
    try:
        return msgspec.convert(answer.body, Metadata)
    except msgspec.ValidationError as exc:
        msg = f"the model's metadata cannot be read: {exc}; is --url a Tidegate?"
        raise Stop(msg, UNREACHABLE) from exc


def _read(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read()
        return Path(name).read_bytes()
    except OSError as exc:
        msg = f"--data {name}: {exc.strerror}"
        raise Stop(msg) from exc


def _rows(outputs: list[dict[str, Any]]) -> list[list[str]]:
    """One row a row of the batch; the values that an output has for it, side by side."""
    columns: list[list[str]] = []
    for output in outputs:
        shape, values = output["shape"], output.get("data", [])
        rows = shape[0] if shape else 1
        per_row = len(values) // rows if rows else 0
        columns.append([_values(values[row * per_row : (row + 1) * per_row]) for row in range(rows)])
    count = max((len(column) for column in columns), default=0)
    return [
        [str(row), *(column[row] if row < len(column) else "" for column in columns)] for row in range(count)
    ]


def _values(values: list[Any]) -> str:
    shown = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values[:16]]
    return " ".join(shown) + (f" … {len(values)} values" if len(values) > 16 else "")
