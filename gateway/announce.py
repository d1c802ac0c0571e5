"""The announcer: says on standard output, once, that the gateway is up and what to paste next.

A child of the supervisor that lives for seconds, so that the supervisor itself never waits for an answer.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from gateway import __version__
from gateway.process import Context, enter

WAIT_S = 30.0
POLL_S = 0.05
_EXAMPLES = {"BOOL": True, "BYTES": "text"}


def get(url: str, path: str) -> tuple[int, Any]:
    """One GET of the data listener; (0, None) when nothing answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read() or b"null")
    except (OSError, ValueError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()


def example_body(metadata: dict[str, Any]) -> str:
    """A request that fits a model's inputs: one row, plain numbers."""
    inputs = []
    for tensor in metadata["inputs"]:
        shape = [dim if dim > 0 else 1 for dim in tensor["shape"]]
        count = 1
        for dim in shape:
            count *= dim
        values: list[Any]
        if tensor["datatype"].startswith("FP"):
            values = [round(0.5 + 0.7 * i % 5, 1) for i in range(count)]
        else:
            values = [_EXAMPLES.get(tensor["datatype"], 1)] * count
        inputs.append(
            {
                "name": tensor["name"],
                "datatype": tensor["datatype"],
                "shape": shape,
                "data": values,
            }
        )
    return json.dumps({"inputs": inputs}, separators=(",", ":"))


def curl_line(url: str, metadata: dict[str, Any]) -> str:
    """The line to paste."""
    body = example_body(metadata)
    if len(body) > 2000:
        return f"tidegate predict {metadata['name']}"
    name = quote(str(metadata["name"]))
    return f"curl -s {url}/v2/models/{name}/infer -d '{body}'"


def wait_ready(url: str) -> list[str]:
    """Wait until every model that is there can answer; returns their names."""
    deadline = time.monotonic() + WAIT_S
    names: list[str] = []
    while time.monotonic() < deadline:
        status, _ = get(url, "/v2/health/ready")
        _, listed = get(url, "/v2/models")
        names = list((listed or {}).get("models", []))
        if status == 200 and all(get(url, f"/v2/models/{quote(name)}/ready")[0] == 200 for name in names):
            return names
        time.sleep(POLL_S)
    return names


def lines(context: Context) -> list[str]:
    """What to print."""
    url = context.data_url
    has_models = any(Path(context.models).glob("*/*/model.onnx"))
    names: list[str] = []
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        names = wait_ready(url)
        if names or not has_models:
            break
        time.sleep(POLL_S)
    out = [
        f"Tidegate {__version__} is serving.",
        f"  inference  {url}",
        f"  admin      {context.admin_url}   (token in admin.token of the state directory)",
        f"  log        every prediction is recorded, inputs included, in {_shown(context)}/spool",
    ]
    if not names:
        out.append(f"  models     none yet: put one at {_models(context)}/NAME/1/model.onnx")
        return out
    first = ""
    for name in names:
        status, metadata = get(url, f"/v2/models/{quote(name)}")
        if status != 200:
            why = (metadata or {}).get("error", "not ready")
            out.append(f"  model      {name}: {why}")
            continue
        version = metadata.get("properties", {}).get("version", "?")
        versions = ", ".join(metadata["versions"])
        out.append(f"  model      {name}: version {version} answers (loaded: {versions})")
        first = first or curl_line(url, metadata)
    if first:
        out += ["", "Try it:", f"  {first}"]
    return out


def _shown(context: Context) -> str:
    path = Path(context.state_dir)
    here = Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)


def _models(context: Context) -> str:
    path = Path(context.models)
    here = Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)


def main() -> None:
    """Entry of the process."""
    context = enter()
    sys.stdout.write("\n".join(lines(context)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
