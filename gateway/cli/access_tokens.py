"""`tidegate token`: who may do what over the admin listener, and beyond loopback over the data listener.

A token is shown once, when it is made: the gateway keeps its SHA-256. To replace one, make a second, hand it out, then
revoke the first: two of a principal are valid beside each other.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import click

from gateway.cli.changing import keyed
from gateway.cli.client import Client, admin_options, quoted
from gateway.cli.failures import NO, Stop
from gateway.cli.screen import json_option, moment, print_json, say, table

ADDRESS = "/admin/v1/tokens"
_SPAN = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@click.group("token")
def command() -> None:
    """Make, list and revoke tokens."""


@command.command("new")
@click.argument("principal")
@click.option(
    "--scope", "scopes", multiple=True, required=True, metavar="SCOPE",
    help="What it may do, as in read, shift:flights or infer:*; may be given several times.",
)  # fmt: skip
@click.option(
    "--expires", metavar="SPAN", help="Valid for so long, as in 12h or 90d  [default: until revoked]"
)
@click.option("--automaton", is_flag=True, help="It is held to the bounds of routes, as the sidecar is.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write it to this new file, for its owner alone."
)
@click.option("--reason", required=True, help="Why; it stands in the log.")
@click.option("--idempotency-key", "key", metavar="KEY", help="Made once, however often it is asked.")
@admin_options
@json_option
def new(principal: str, admin: Client, as_json: bool, **given: Any) -> None:
    """Make a token for PRINCIPAL; it is shown once."""
    quoted(principal)
    body = {"principal": principal, "scopes": list(given["scopes"]), "reason": given["reason"]}
    body["expires_ns"] = None if given["expires"] is None else time.time_ns() + _span_ns(given["expires"])
    if given["automaton"]:
        body["automaton"] = True
    out = given["out"]
    # Before the token is made: one that cannot be kept would only have to be revoked.
    fd = None if out is None else os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        answer = admin.send("POST", ADDRESS, headers=keyed(given["key"]), body=body).body
        if fd is not None:
            os.write(fd, answer["token"].encode() + b"\n")
    except BaseException:
        if out is not None:
            out.unlink(missing_ok=True)
        raise
    finally:
        if fd is not None:
            os.close(fd)
    if as_json:
        print_json(answer if out is None else {k: v for k, v in answer.items() if k != "token"})
        return
    until = "until it is revoked" if body["expires_ns"] is None else f"until {moment(body['expires_ns'])}"
    if out is None:
        say(str(answer["token"]))
    where = "shown once: keep it in a file that only its owner reads" if out is None else f"it is in {out}"
    click.echo(f"token {answer['id']} of {principal}, valid {until}; {where}", err=out is None)


@command.command("list")
@admin_options
@json_option
def list_tokens(as_json: bool, admin: Client) -> None:
    """List the tokens: whose, what for, until when. Never the tokens themselves."""
    body = admin.get(ADDRESS).body
    if as_json:
        print_json(body)
        return
    tokens = body.get("tokens", []) if isinstance(body, dict) else body
    if not tokens:
        say("no tokens but the gateway's own; `tidegate token new NAME --scope SCOPE --reason …` makes one")
        return
    table(("id", "principal", "scopes", "made", "expires", "state"), [_row(one) for one in tokens])


@command.command("revoke")
@click.argument("token_id", metavar="ID")
@click.option("--reason", required=True, help="Why; it stands in the log.")
@click.option("--idempotency-key", "key", metavar="KEY", help="Done once, however often it is asked.")
@admin_options
@json_option
def revoke(token_id: str, reason: str, key: str | None, as_json: bool, admin: Client) -> None:
    """End a token by its id: within a second nobody gets in with it."""
    path = f"{ADDRESS}/{quoted(token_id)}"
    answer = admin.send("DELETE", path, headers=keyed(key), body={"reason": reason})
    if as_json:
        print_json(answer.body)
    else:
        say(f"token {token_id} is revoked")
    if answer.status == 202:
        raise Stop(f"token {token_id}: not done yet: some workers may still take it for a second", NO)


def _row(token: dict[str, Any]) -> tuple[Any, ...]:
    expires_ns = token.get("expires_ns")
    over = expires_ns is not None and expires_ns <= time.time_ns()
    state = token.get("state") or ("revoked" if token.get("revoked_ns") else "expired" if over else "valid")
    scopes = ", ".join(token.get("scopes", ())) + (" (automaton)" if token.get("automaton") else "")
    return (
        token.get("id"), token.get("principal"), scopes, moment(token.get("created_ns") or 0),
        "never" if expires_ns is None else moment(expires_ns), state,
    )  # fmt: skip


def _span_ns(text: str) -> int:
    found = _SPAN.fullmatch(text)
    if found is None or int(found[1]) == 0:
        msg = f"--expires {text}: expected a number and s, m, h, d or w, as in 90d"
        raise Stop(msg)
    return int(found[1]) * _SECONDS[found[2]] * 1_000_000_000
