"""An upgrade's check: `python -P -m gateway.cli.preflight`, the new code run once beside the gateway it is to become.

Started by the running supervisor with its own context in the environment. Reads the configuration again as `serve` was
asked to, imports every process's module, and looks whether this code reads what lies there: state directory, snapshot,
shared memory, rings. Prints one line of JSON: the context of the new image, or why not. All that it changes: keys of
this version that the running one did not know are made, since the new image could only die of a disk that takes none.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

import gateway
from gateway.audit.ring import FORMAT as RING_FORMAT
from gateway.audit.ring import MAGIC as RING_MAGIC
from gateway.claims import STATE_FORMAT, StartRefused, ensure_keys
from gateway.cli.failures import Stop, explain
from gateway.cli.serve import Asked, prepare
from gateway.control import snapshot
from gateway.fleet import Fleet
from gateway.process import CONTEXT_VARIABLE, Context

MODULES = (
    "gateway.supervisor",
    "gateway.worker",
    "gateway.control.__main__",
    "gateway.audit.recorder",
    "gateway.audit.forwarder",
    "shadow.sidecar",
    "shadow.mirror",
)
"""What the supervisor starts; a missing package of theirs shows at import. Of shadow, what is installed."""
KEPT = (
    "gateway_id",
    "ring_dir",
    "fleet_path",
    "data_fd",
    "admin_fd",
    "data_url",
    "admin_url",
    "supervisor_pid",
)
"""Of the running gateway's context: what the new image takes over."""
_FIXED = ("workers", "data.host", "data.port", "admin.host", "admin.port", "audit.ring", "state_dir")
"""Settings that belong to what is kept through an upgrade."""


def check(running: dict[str, Any]) -> Context:
    """The context of the new image.

    Args:
        running: the context of the running gateway; of another version, so fields may be missing or unknown.

    Raises:
        Stop: this code cannot take over, with what is in the way.
        GatewayError: the configuration or the snapshot cannot be read.
    """
    os.chdir(running.get("directory") or "/")
    new, _ = prepare(msgspec.json.decode(running.get("asked", "{}"), type=Asked))
    check_fixed(json.loads(running["config"]), json.loads(new.config))
    if new.state_dir != running["state_dir"]:
        msg = f"the state directory would be {new.state_dir}, the gateway has {running['state_dir']}"
        raise Stop(msg)
    _check_formats(running)
    try:
        ensure_keys(Path(running["state_dir"]))
    except StartRefused as exc:
        raise Stop(str(exc)) from None
    for module in MODULES:
        if module.startswith("gateway.") or find_spec(module.partition(".")[0]) is not None:
            importlib.import_module(module)
    return new.with_(**{name: running[name] for name in KEPT})


def check_fixed(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raises Stop at the first setting that is another now and cannot change by an upgrade."""
    for key in _FIXED:
        section, _, name = key.rpartition(".")
        old, new = (
            tree.get(section, {}).get(name) if section else tree.get(name) for tree in (before, after)
        )
        if key != "state_dir" and old != new:
            msg = f"{key} is {new!r} now and was {old!r} when the gateway started: that needs a restart"
            raise Stop(msg)


def _check_formats(running: dict[str, Any]) -> None:
    """Raises Stop where this code does not read what the running gateway wrote: that needs a restart, which drains."""
    restart = "stop the gateway and start this version: a stop drains what an upgrade cannot take over"
    state_dir = Path(running["state_dir"])
    found = (state_dir / "format").read_text().strip()
    if found != str(STATE_FORMAT):
        msg = f"the state directory has format {found}, this version writes {STATE_FORMAT}: {restart}"
        raise Stop(msg)
    try:
        Fleet.open(Path(running["fleet_path"]))
    except ValueError:
        msg = f"the shared memory of the running gateway has another format than this version's: {restart}"
        raise Stop(msg) from None
    for path in Path(running["ring_dir"]).iterdir():
        if path.name != "fleet" and not path.name.endswith(".new") and _magic(path) not in {None, RING_MAGIC}:
            msg = f"the rings have another format than this version's {RING_FORMAT}: {restart}"
            raise Stop(msg)
    path = state_dir / "control" / "snapshot"
    if path.exists():
        snapshot.decode_serving(path.read_bytes())


def _magic(path: Path) -> int | None:
    """The first word of a ring; None when it was drained and removed meanwhile."""
    try:
        with path.open("rb") as file:
            return int.from_bytes(file.read(8), sys.byteorder)
    except FileNotFoundError:
        return None


def main() -> None:
    """Entry of the process: exit 0 with a context, 1 with a reason."""
    running = json.loads(os.environ.pop(CONTEXT_VARIABLE, "{}"))
    try:
        context = check(running)
    except Exception as exc:
        told = explain(exc)
        why = told[0].removeprefix("tidegate: ") if told else f"{type(exc).__name__}: {exc}"
        print(json.dumps({"why": f"version {gateway.__version__}: {why}"}))
        raise SystemExit(1) from None
    print(json.dumps({"context": asdict(context), "version": gateway.__version__}))


if __name__ == "__main__":
    main()
