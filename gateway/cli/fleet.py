"""`tidegate fleet`: the processes of a gateway, and their rolling restart.

Both over the admin API: what workers say of themselves, and the supervisor's roster, in which a restart shows how it
goes on. An upgrade (`gateway.cli.upgrade`) reads the roster on disk, on the gateway's host.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gateway import roster
from gateway.cli.client import Client, admin_options, read_endpoints, state_directory
from gateway.cli.failures import NO, UNREACHABLE, Stop
from gateway.cli.screen import json_option, print_json, say, table

OLD_S = 5.0
"""The roster is written each second: one so old was written by a supervisor that is gone or stands still."""
POLL_S = 0.1
LOOK_S = 5.0
"""`show` waits so long for the admin listener: it is asked when something is wrong."""


@click.group("fleet")
def command() -> None:
    """Show the gateway's processes; restart its workers one by one."""


@command.command("show")
@admin_options
@json_option
def show(as_json: bool, admin: Client) -> None:
    """List the processes, and how often each role died."""
    admin.wait_at_most(LOOK_S)
    missing: str | None = None
    try:
        body = admin.get("/admin/v1/fleet").body
    except Stop as stop:
        own = _own_roster() if stop.exit_code == UNREACHABLE else None
        if own is None:
            raise
        body = {"workers": [], "supervisor": own}
        missing = (
            f"nothing answers at {admin.url}: this is the supervisor's word alone. Inference goes on without the admin"
            " listener; why control does not answer stands in the gateway's log"
        )
    if as_json:
        print_json(body)
    else:
        _print(body)
    if missing is not None:
        raise Stop(missing, UNREACHABLE)


def _print(body: dict[str, Any]) -> None:
    status = body.get("supervisor")
    workers = {f"worker-{w['worker']}": w for w in body["workers"]}
    if not status:
        table(("process", "pid", "state", "in flight"), [(n, *_of_worker(w)) for n, w in workers.items()])
        return
    rows = [
        (
            child["name"],
            child["pid"],
            _of_worker(workers[child["name"]])[1] if child["name"] in workers else _state(child),
            _duration(child["up_s"]),
            child["starts"],
            child["last_exit"],
        )
        for child in status["children"]
    ]
    table(("process", "pid", "state", "up", "starts", "last exit"), rows)
    for name in ("restart", "upgrade"):
        if status[name]["state"] not in {"none", "done"}:
            why = f": {status[name]['why']}" if status[name]["why"] else ""
            say(f"{name} {status[name]['state']}{why}")


@command.command("restart")
@click.option("--wait/--no-wait", default=True, help="Wait until it is done [default], or only ask.")
@click.option("--timeout", "timeout_s", type=float, default=900.0, help="Seconds to wait. [default: 900]")
@click.option("--reason", default="asked on the command line", help="Why; it stands in the log.")
@admin_options
@json_option
def restart(wait: bool, timeout_s: float, reason: str, as_json: bool, admin: Client) -> None:
    """Replace every worker, one at a time, while the others serve.

    Each successor serves before its predecessor is told to leave. Exit 1: one could not be replaced, and serves on.
    """

    def read() -> dict[str, Any] | None:
        found: dict[str, Any] | None = admin.get("/admin/v1/fleet").body.get("supervisor")
        return found

    status = read()
    if status is None:
        msg = "the supervisor has not said anything yet: ask again in a second"
        raise Stop(msg, NO)
    before = status["restart"]["asked"]
    admin.send("POST", "/admin/v1/fleet/restart", body={"reason": reason})
    if not wait:
        say("asked")
        return
    told = await_roster(
        read,
        lambda s: s["restart"]["asked"] > before and s["restart"]["state"] in {"done", "failed"},
        timeout_s,
    )["restart"]
    if as_json:
        print_json(told)
    if told["state"] == "failed":
        raise Stop(f"{told['why']}; it serves on as before", NO)
    if not as_json:
        say(f"{told['replaced']} of {told['children']} workers replaced")


def running_roster(state_dir: Path) -> dict[str, Any]:
    """The same of a supervisor that lives.

    Raises:
        Stop: none does, with where we looked.
    """
    endpoints, status = read_endpoints(state_dir), roster.read(state_dir)
    if endpoints is not None and status is None and _lives(endpoints.pid):
        msg = (
            f"the gateway of {state_dir} (pid {endpoints.pid}) is of a version that cannot be upgraded while it runs:"
            " stop it, then start this one on the same state directory"
        )
        raise Stop(msg, NO)
    if endpoints is None or status is None or status["pid"] != endpoints.pid or _is_old(status):
        msg = f"no gateway runs in the state directory {state_dir}: name its directory with --state-dir"
        raise Stop(msg, UNREACHABLE)
    return status


def await_roster(
    read: Callable[[], dict[str, Any] | None], holds: Callable[[dict[str, Any]], bool], timeout_s: float
) -> dict[str, Any]:
    """Poll the roster until something holds.

    Args:
        read: gives what the supervisor last said.

    Raises:
        Stop: the gateway has gone, or it took too long.
    """
    deadline = time.monotonic() + timeout_s
    seen_s = time.monotonic()
    while True:
        status = read()
        if status is not None and not _is_old(status):
            seen_s = time.monotonic()
            if holds(status):
                return status
        if time.monotonic() - seen_s > 2 * OLD_S:
            msg = "the supervisor has not been heard of for 10 s: look at its log"
            raise Stop(msg, UNREACHABLE)
        if time.monotonic() > deadline:
            msg = f"not done after {timeout_s:g} s; it goes on: `tidegate fleet show`"
            raise Stop(msg, NO)
        time.sleep(POLL_S)


def _own_roster() -> dict[str, Any] | None:
    """What the supervisor of this host's gateway says, if no other gateway was named."""
    given = click.get_current_context().params
    if given.get("url") is not None:
        return None
    try:
        return running_roster(state_directory(given.get("state_dir")))
    except Stop:
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def _is_old(status: dict[str, Any]) -> bool:
    return time.time() - status["at_ns"] / 1e9 > OLD_S


def _of_worker(worker: dict[str, Any]) -> tuple[Any, Any, Any]:
    return worker["pid"], worker["state"], worker["inflight"]


def _state(child: dict[str, Any]) -> str:
    if child["crash_looping"]:
        return "crash loop"
    return "runs" if child["pid"] is not None else "down" if child["wanted"] else "not wanted"


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    for unit_s, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds:.0f} s"
