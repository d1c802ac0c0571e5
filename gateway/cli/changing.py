"""What every command that changes traffic has: a reason, a revision, a key, and one way to say what came of it.

A change is a compare-and-set: it names the revision that it was decided on (by default the one that the command has
just read), and the gateway refuses it when the route has moved on. "Accepted" is not "done": a change that takes
traffic away and is not yet run by every worker ends with exit code 1, and names those workers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from gateway.cli.client import KEY_HEADER, Answer, Client, admin_options, quoted
from gateway.cli.failures import NO, Stop
from gateway.cli.screen import json_option, percent, print_json, say, table

KEY_CHARS_MAX = 200


_HOLDS = {
    "stop": "{model} is stopped: whatever its route says, it answers nothing until `tidegate model resume {model}`",
    "resume": "{model} answers again, as its route says",
    "freeze": "{model}: the split stays as it is until `tidegate route thaw {model}`",
    "thaw": "{model}: its route may be changed again",
}
"""What a change did that moves no weight."""


class Wanted(NamedTuple):
    """What the options of a change say."""

    reason: str
    if_match: int | None
    dry_run: bool
    key: str | None
    as_json: bool


def change_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what every change has, `--reason` to `--idempotency-key`, and hand it an `Asked` as `asked`."""

    @click.option("--reason", required=True, help="Why; it stands in the log.")
    @click.option("--if-match", type=int, metavar="REV", help="Only at this revision [default: now's].")
    @click.option("--dry-run", is_flag=True, help="Show what would change, change nothing.")
    @click.option(
        "--idempotency-key",
        "key",
        metavar="KEY",
        help="Made once, however often it is asked [default: drawn].",
    )
    @admin_options
    @json_option
    @functools.wraps(function)
    def wrapped(*args: Any, admin: Client, **rest: Any) -> None:
        names = ("reason", "if_match", "dry_run", "key", "as_json")
        wanted = Wanted(*(rest.pop(name) for name in names))
        function(*args, asked=Asked(admin, wanted), **rest)

    return wrapped


class Asked:
    """A change in the making: where it goes, why, on which revision.

    Raises:
        Stop: the key is none that a header can carry.
    """

    def __init__(self, admin: Client, wanted: Wanted) -> None:
        self._admin = admin
        self._wanted = wanted
        self._if_match = wanted.if_match
        self._keyed = keyed(wanted.key)

    def route(self, model: str) -> dict[str, Any]:
        """The route now; a change is based on its revision unless `--if-match` says else."""
        route = read_route(self._admin, model)
        if self._if_match is None:
            self._if_match = route["revision"]
        return route

    def send(self, model: str, action: str, body: dict[str, Any]) -> None:
        """Ask for a change of the route and print what came of it; `action` "" replaces the route.

        Raises:
            Stop: refused; or it takes traffic away, and some workers do not run it yet (1).
        """
        if self._if_match is None:
            self.route(model)
        path = f"/admin/v1/routes/{quoted(model)}" + (f"/{action}" if action else "")
        answer = self.ask("POST" if action else "PUT", path, body)
        self._end(model, action, body, answer)

    def send_to_model(self, model: str, action: str) -> None:
        """Ask for `stop` or `resume` of a whole model.

        Raises:
            Stop: as `send`.
        """
        if self._if_match is None:
            self.route(model)
        answer = self.ask("POST", f"/admin/v1/models/{quoted(model)}/{action}", {})
        self._end(model, action, {}, answer)

    @property
    def as_json(self) -> bool:
        """Whether JSON is wanted."""
        return self._wanted.as_json

    @property
    def dry_run(self) -> bool:
        """Whether nothing shall change."""
        return self._wanted.dry_run

    def ask(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        """One change, for commands that say themselves what came of it; with `If-Match` where a route was read."""
        headers = dict(self._keyed)
        if self._if_match is not None:
            headers["if-match"] = f'"{self._if_match}"'
        return self._admin.send(
            method,
            path,
            params={"dry_run": "true"} if self._wanted.dry_run else None,
            headers=headers,
            body={**body, "reason": self._wanted.reason},
        )

    def _end(self, model: str, action: str, body: dict[str, Any], answer: Answer) -> None:
        if self._wanted.as_json:
            print_json(answer.body)
        else:
            self._print(model, action, answer)
        pending = _pending(answer)
        if pending and not self._wanted.dry_run and takes_away(action, body, answer.body):
            msg = (
                f"{model}: not done yet: {_workers(pending)} may still answer by the old route; `tidegate route show"
                f" {model}` and `tidegate model show {model}` say how it stands"
            )
            raise Stop(msg, NO)

    def _print(self, model: str, action: str, answer: Answer) -> None:
        body = answer.body
        before, after = body.get("before_bp") or {}, body.get("after_bp") or {}
        if action in _HOLDS and not self._wanted.dry_run:
            # No weight changes, so that a table of weights would look as if nothing had.
            say(_HOLDS[action].format(model=model))
        elif after:
            names = list(dict.fromkeys([*before, *after]))
            table(
                ("variant", "before", "after"),
                [(n, *(_share(weights.get(n)) for weights in (before, after))) for n in names],
            )
        if self._wanted.dry_run:
            say(f"{model}: nothing changed (dry run); revision {self._if_match} stands")
            return
        applied = body.get("applied") or {}
        say(f"{model}: revision {self._if_match} -> {body.get('revision', '?')}{_applied(applied)}")
        if body.get("logged") is False:
            say("not logged yet: the log cannot be written at present, it is logged once it can")
        if pending := _pending(answer):
            say(f"accepted; not run yet by {_workers(pending)}")


def keyed(key: str | None) -> dict[str, str]:
    """The header of `--idempotency-key`; none where one is drawn (client).

    Raises:
        Stop: the key is none that a header can carry.
    """
    if key is None:
        return {}
    if not (0 < len(key) <= KEY_CHARS_MAX and key.isascii() and key.isprintable()):
        msg = f"--idempotency-key: expected 1 to {KEY_CHARS_MAX} printable ASCII characters"
        raise Stop(msg)
    return {KEY_HEADER: key}


def takes_away(action: str, sent: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Whether a change is one of those that must hold once they are acknowledged: somebody shall get less, or nothing.

    A stop, a rollback, or a canary with less weight than before. What the primary gives up to a canary is not meant.
    """
    if action in {"stop", "rollback"}:
        return True
    before, after = answer.get("before_bp") or {}, answer.get("after_bp") or {}
    if action == "shift":
        names = set(sent.get("weights_bp") or {})
    elif action == "":
        primaries = {v["name"] for v in sent.get("variants") or () if v.get("role") == "primary"}
        names = set(before) - primaries
    else:
        return False
    return any(after.get(name, 0) < before.get(name, 0) for name in names)


def read_route(admin: Client, model: str) -> dict[str, Any]:
    """The route of a model.

    Raises:
        Stop: there is none, or it is no gateway that answers.
    """
    body = admin.get(f"/admin/v1/routes/{quoted(model)}").body
    if not isinstance(body, dict) or "revision" not in body or "variants" not in body:
        msg = f"{admin.url} gave no route for {model}: is that a Tidegate's admin listener?"
        raise Stop(msg, 3)
    return body


def _pending(answer: Answer) -> list[str]:
    """Workers that do not run a change yet, by index."""
    if answer.status != 202 or not isinstance(answer.body, dict):
        return []
    applied = answer.body.get("applied") or {}
    found = applied.get("pending") or answer.body.get("pending") or ()
    return [str(index) for index in found] or ["?"]


def _workers(pending: list[str]) -> str:
    return f"worker{'s' if len(pending) > 1 else ''} {', '.join(pending)}"


def _share(weight_bp: int | None) -> str | None:
    return None if weight_bp is None else percent(weight_bp)


def _applied(applied: dict[str, Any]) -> str:
    if not applied:
        return ""
    took = f" in {applied['ms']} ms" if "ms" in applied else ""
    return f", run by {applied.get('workers', '?')} of {applied.get('of', '?')} workers{took}"
