"""`tidegate model`: what is in the repository, what is loaded, and changing that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import gateway.config
from gateway.cli import profile, publish
from gateway.cli.changing import Asked, change_options
from gateway.cli.client import Client, admin_options, quoted
from gateway.cli.completion import model_argument, version_names
from gateway.cli.failures import NO, Stop
from gateway.cli.screen import Piece, json_option, made_table, print_json, say, show, table
from gateway.cli.watching import watch, watch_option

reason_option = click.option(
    "--reason", default="asked on the command line", help="Why; it stands in the log."
)


@click.group("model")
def command() -> None:
    """Show, publish, load, stop and unload models."""


command.add_command(profile.command)
command.add_command(publish.command)


@command.command("list")
@watch_option
@admin_options
@json_option
def list_models(watch_it: bool, as_json: bool, admin: Client) -> None:
    """List every version that the repository holds or a worker has loaded."""

    def fetch() -> Any:
        return admin.get("/admin/v1/models").body

    if watch_it:
        watch(fetch, _listed, as_json)
        return
    body = fetch()
    if as_json:
        print_json(body)
    else:
        show(_listed(body))


def _listed(body: Any) -> Iterator[Piece]:
    rows = [
        row
        for model in _models(body)
        for row in _version_rows(str(model.get("name") or model.get("model")), model)
    ]
    if rows:
        yield made_table(("model", "version", "state", "weight", "reason"), rows)
    else:
        yield "no models: put one at <repository>/NAME/1/model.onnx, then `tidegate model refresh`"
    for problem in body.get("problems", []) if isinstance(body, dict) else []:
        yield f"problem: {problem}"


@command.command("show")
@model_argument()
@admin_options
@json_option
def show_model(model: str, as_json: bool, admin: Client) -> None:
    """Show the versions of MODEL."""
    body = admin.get(f"/admin/v1/models/{quoted(model)}").body
    if as_json:
        print_json(body)
        return
    table(("model", "version", "state", "weight", "reason"), _version_rows(model, body))


@command.command("stop")
@model_argument()
@change_options
def stop(model: str, asked: Asked) -> None:
    """Answer no request for MODEL any more, whatever its route says, until it is resumed; it stays loaded."""
    asked.send_to_model(model, "stop")


@command.command("resume")
@model_argument()
@change_options
def resume(model: str, asked: Asked) -> None:
    """End a stop: MODEL answers again, by the route that it has."""
    asked.send_to_model(model, "resume")


@command.command("load")
@model_argument()
@click.argument("version", required=False, shell_complete=version_names)
@reason_option
@admin_options
@json_option
def load(model: str, version: str | None, reason: str, as_json: bool, admin: Client) -> None:
    """Load VERSION of MODEL [default: the newest] into every worker."""
    _change(admin, model, version, "load", reason, as_json)


@command.command("unload")
@model_argument()
@click.argument("version", shell_complete=version_names)
@reason_option
@admin_options
@json_option
def unload(model: str, version: str, reason: str, as_json: bool, admin: Client) -> None:
    """Unload VERSION of MODEL; refused while it is in the route."""
    _change(admin, model, version, "unload", reason, as_json)


@command.command("refresh")
@reason_option
@admin_options
@json_option
def refresh(reason: str, as_json: bool, admin: Client) -> None:
    """Look at the repository now, and load what is new."""
    body = admin.send("POST", "/admin/v1/models/refresh", body={"reason": reason}).body
    if as_json:
        print_json(body)
        return
    say(f"repository read: {_told(body)}")


@command.command("check")
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path), metavar="[PATH]")
@json_option
@click.pass_context
def check(context: click.Context, path: Path | None, as_json: bool) -> None:
    """Try every version below PATH (a repository, a model or a version) as a gateway would; needs none running.

    Exits 1 when one is refused.
    """
    # Here, not above: no other command of this group needs ONNX Runtime.
    from gateway.checking import check_versions, versions_below  # noqa: PLC0415
    from loaders.confine import gaps  # noqa: PLC0415

    config = gateway.config.load()[0]
    path = path or Path(config.models)
    if not path.is_dir():
        msg = f"{path} is no directory; expected a repository, a model's directory or a version's"
        raise Stop(msg)
    root, versions, problems = versions_below(path.resolve())
    with tempfile.TemporaryDirectory(prefix="tidegate-check-") as kept:
        checked = check_versions(root, versions, config.session, Path(kept))
    if as_json:
        print_json({"versions": checked, "problems": list(problems), "sandbox": list(gaps())})
    else:
        if checked:
            table(("model", "version", "verdict", "why"), [_checked_row(one) for one in checked])
        else:
            say(f"no models below {path}")
        for problem in problems:
            say(f"problem: {problem}")
        for gap in gaps():
            say(f"warning: {gap}")
    if not all(one["ok"] for one in checked):
        context.exit(NO)


def _checked_row(one: dict[str, Any]) -> tuple[Any, ...]:
    if not one["ok"]:
        return one["model"], one["version"], "refused", one["reason"]
    facts = [
        "rows may share a run" if one["batchable"] else "one request a run",
        f"{one['memory_bytes'] / 1e6:.1f} MB",
        f"{one['run_us']:,.0f} us a run",
    ]
    if one["golden_lines"]:
        facts.append(f"{one['golden_lines']} golden lines")
    if one["endless"]:
        facts.append("a run on zeros did not end by itself")
    facts += one["warnings"]
    return one["model"], one["version"], "ok", "; ".join(facts)


def _change(admin: Client, model: str, version: str | None, action: str, reason: str, as_json: bool) -> None:
    body: dict[str, Any] = {"reason": reason}
    if version is not None:
        body["version"] = quoted(version)
    answer = admin.send("POST", f"/admin/v1/models/{quoted(model)}/{action}", body=body)
    if as_json:
        print_json(answer.body)
        return
    version = version or answer.body.get("version")
    at = f" version {version}" if version else ""
    pending = "; some workers are not done yet: see `tidegate model show`" if answer.status == 202 else ""
    if action == "load" and not pending:
        pending = "; `tidegate model show` says when it is ready, or why it is not"
    say(f"{action} {model}{at}: {_told(answer.body)}{pending}")


def _models(body: Any) -> list[dict[str, Any]]:
    models = body.get("models", []) if isinstance(body, dict) else body
    if isinstance(models, dict):
        return [{"name": name, **model} for name, model in models.items()]
    return list(models)


def _version_rows(name: str, model: dict[str, Any]) -> list[tuple[Any, ...]]:
    versions = model.get("versions")
    if versions is None:
        versions = [model]
    return [(name, v.get("version"), v.get("state"), _weight(v), v.get("reason")) for v in versions]


def _weight(version: dict[str, Any]) -> str | None:
    weight = version.get("weight_bp")
    return None if weight is None else f"{weight / 100:g}%"


def _told(body: Any) -> str:
    """The reply's plain facts, as "name value" pairs."""
    facts = [
        f"{name} {value}"
        for name, value in (body.items() if isinstance(body, dict) else ())
        if isinstance(value, str | int) and name not in {"model", "version"}
    ]
    return ", ".join(facts) or "done"
