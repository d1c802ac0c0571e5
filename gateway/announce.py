"""The announcer: says on standard output, once, that the gateway is up and what to paste next.

A child of the supervisor that lives for seconds, so that the supervisor itself never waits for an answer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from gateway import __version__
from gateway.process import Context, enter

WAIT_S = 30.0
PATIENCE_S = 3.0
"""For the other models, once one answers: a broken one must not keep the operator waiting."""
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
    return f"curl -s {url}/v2/models/{name}/infer -d {shlex.quote(body)}"


def ready_models(url: str) -> dict[str, bool]:
    """Whether each known model can answer.

    One model at a time, since the gateway as a whole is not ready while any primary is broken.
    """
    _, listed = get(url, "/v2/models")
    names = (listed or {}).get("models", [])
    return {name: get(url, f"/v2/models/{quote(name)}/ready")[0] == 200 for name in names}


def wait_up(url: str, *, has_models: bool, wait_s: float = WAIT_S, patience_s: float = PATIENCE_S) -> None:
    """Poll until all models answer, or for `wait_s`, or for `patience_s` after the first model answers."""
    deadline = time.monotonic() + wait_s
    answered = False
    while time.monotonic() < deadline:
        ready = ready_models(url)
        whole = get(url, "/v2/health/ready")[0] == 200
        if whole and all(ready.values()) and (ready or not has_models):
            return
        if not answered and any(ready.values()):
            answered = True
            deadline = min(deadline, time.monotonic() + patience_s)
        time.sleep(POLL_S)


def lines(context: Context, *, has_models: bool) -> list[str]:
    """What to print."""
    url = context.data_url
    whole = get(url, "/v2/health/ready")[0] == 200
    _, listed = get(url, "/v2/models")
    names = list((listed or {}).get("models", []))
    some = any(ready_models(url).values())
    state = "is serving." if whole else "is serving, but not every model." if some else "is not ready yet."
    out = [
        f"Tidegate {__version__} {state}",
        f"  inference  {url}",
        f"  admin      {context.admin_url}   (token in admin.token of the state directory)",
        f"  log        every prediction is recorded, inputs included, in {_shown(context.state_dir)}/spool"
        " (README: Privacy)",
    ]
    out.append(f"  room       {spool_room(context.state_path)}")
    if json.loads(context.config).get("sidecar", {}).get("enabled", True):
        out.append("  watch      a canary that does harm loses its traffic (policy.MODEL in docs/config.md)")
    if listed is None:
        out.append("  models     no worker answers yet: what keeps them is in the log lines of this terminal")
    elif not names and has_models:
        out.append("  models     none answers yet: `tidegate model list` says why")
    elif not names:
        out.append(f"  models     none yet: put one at {_shown(context.models)}/NAME/1/model.onnx")
    first = ""
    for name in names:
        status, metadata = get(url, f"/v2/models/{quote(name)}")
        if status != 200 or not isinstance(metadata, dict):
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


def spool_room(state_dir: Path) -> str:
    """How long the spool takes records at the rate of late: the recorder's own figures, else what is free on the disk.

    With Kafka what is full is what the topic has not got; without, the oldest records go.
    """
    status: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        status = json.loads((state_dir / "recorder" / "status.json").read_bytes())
    with contextlib.suppress(KeyError, TypeError):
        used, most, hours = status["spool_bytes"], status["max_bytes"], status["hours_left"]
        left = "no rate yet" if hours is None else f"{hours:g} h left at the rate of late"
        return (
            f"spool {_gib(used)} of {_gib(most)} used, {left}; {_gib(status['free_bytes'])} free on the disk"
        )
    try:
        stat = os.statvfs(state_dir)
    except OSError as exc:
        return f"not known: {exc.strerror}"
    return f"no rate yet; {_gib(stat.f_bavail * stat.f_frsize)} free on the spool's disk"


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _shown(path_text: str) -> str:
    """Short, from where the operator stands."""
    path, here = Path(path_text), Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)


def main() -> None:
    """Entry of the process."""
    context = enter()
    has_models = any(Path(context.models).glob("*/*/model.onnx"))
    wait_up(context.data_url, has_models=has_models)
    sys.stdout.write("\n".join(lines(context, has_models=has_models)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
