"""`tidegate upgrade`: the running gateway becomes the installation that this command belongs to.

Writes which that is into `<state_dir>/supervisor/upgrade.json` and sends SIGUSR2; the supervisor has the new code check
itself, becomes it, and replaces every process while the others serve (`gateway.handover`). Also the way to take up a
changed configuration without a stop.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
from pathlib import Path

import click

from gateway import __version__, roster
from gateway.cli.client import state_dir_option, state_directory
from gateway.cli.failures import NO, Stop
from gateway.cli.fleet import await_roster, running_roster
from gateway.cli.screen import json_option, print_json, say
from gateway.cli.serve import code_path
from gateway.handover import REQUEST
from gateway.roster import replace_file


@click.command("upgrade")
@click.option(
    "--python", metavar="FILE", help="The interpreter of another installation [default: this one's]."
)
@click.option("--timeout", "timeout_s", type=float, default=1800.0, help="Seconds to wait. [default: 1800]")
@state_dir_option
@json_option
def command(python: str | None, timeout_s: float, state_dir: str | None, as_json: bool) -> None:
    """Replace the running gateway's code by this installation's, process by process; no request fails.

    The configuration is read again as `tidegate serve` was asked to. The new code looks first whether it can take over;
    when it cannot, nothing changes and the exit code is 1.
    """
    directory = state_directory(state_dir)
    status = running_roster(directory)
    if status["upgrade"]["state"] in {"checking", "replacing"}:
        msg = "an upgrade is under way: `tidegate fleet show` says how far it is"
        raise Stop(msg, NO)
    made_id, before_id = secrets.token_hex(8), status["upgrade"]["id"]
    request = {
        "id": made_id,
        "python": str(Path(python).absolute()) if python is not None else sys.executable,
        "code_path": code_path() if python is None else "",
    }
    replace_file(directory / "supervisor" / REQUEST, request, owner=_reader_of(directory / "supervisor"))
    os.kill(status["pid"], signal.SIGUSR2)
    told = await_roster(
        lambda: roster.read(directory),
        lambda s: (
            (s["upgrade"]["id"] not in {made_id, before_id} or s["upgrade"]["state"] in {"done", "failed"})
            and s["upgrade"]["id"] != before_id
        ),
        timeout_s,
    )["upgrade"]
    if told["id"] != made_id:
        _take_back(directory / "supervisor" / REQUEST, made_id)
        msg = "not upgraded: another upgrade was asked for in the same moment: `tidegate fleet show` says how far it is"
        raise Stop(msg, NO)
    if as_json:
        print_json(told)
    if told["state"] == "failed":
        raise Stop(f"not upgraded: {told['why']}", NO)
    if not as_json:
        say(f"upgraded from {told['from']} to {told['to'] or __version__}")


def _reader_of(directory: Path) -> tuple[int, int] | None:
    """Who is to read the request where root asks: the gateway of another user could not."""
    if os.geteuid() != 0:
        return None
    owner = directory.stat()
    return owner.st_uid, owner.st_gid


def _take_back(path: Path, made_id: str) -> None:
    """The request, if it still lies there: SIGUSR2 from somebody else would be taken for it."""
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_bytes())["id"] == made_id:
            path.unlink()
