"""`tidegate model publish`: from a directory to a version that every worker has ready, as one act.

DIR -> copy beside the models -> tried here as a worker would -> renamed into its place -> loaded by the gateway -> its
verdict. The gateway never sees half a version: what is copied lies in a hidden directory of the repository, which is
let go whatever happens, and the rename is one step of the file system. What was tried is what is renamed. Publishing
gives no traffic: a later version begins at 0%.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import gateway.config
from gateway.cli.client import Client, admin_options, quoted, repository, state_directory
from gateway.cli.completion import model_argument
from gateway.cli.failures import NO, Stop
from gateway.cli.screen import json_option, percent, print_json, say

STAGED = ".tidegate-incoming-"
"""Hidden from the gateway, which passes over names that begin with a dot."""
POLL_S = 0.1
ABSENT_S = 2.0
"""A version that the workers are to load by themselves is begun with sooner."""
ROUTE_S = 10.0
"""So long the first route of a new model may take, once its version is ready."""
_PIECE_BYTES = 1 << 20
Advance = Callable[[str, float, float | None], None]
"""Told (what is done, how much of it, of how much; None: not known)."""


@click.command("publish")
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@model_argument()
@click.argument("version", required=False)
@click.option("--models", metavar="DIR", help="The model repository [default: what the gateway serves].")
@click.option(
    "--wait-s", type=click.FloatRange(0), default=120.0, show_default=True, help="For it to be ready."
)
@click.option("--reason", default="published on the command line", help="Why; it stands in the log.")
@admin_options
@json_option
@click.pass_context
def command(
    context: click.Context, directory: Path, model: str, version: str | None, admin: Client, **given: Any
) -> None:
    """Try the files in DIR, put them into the repository as VERSION of MODEL [default: the next], and wait until every
    worker has it ready.

    Exits 1 when it is refused, here or by a worker; then nothing serves it.
    """
    quoted(model)
    _check_version(version)
    # Before anything is copied: is there a gateway, and may we?
    admin.get("/admin/v1/models")
    models = given["models"] or repository(state_directory(context.params["state_dir"]))
    root = Path(models)
    if not root.is_dir():
        msg = f"the model repository {root} is not here: publish on the gateway's host, or name it with --models"
        raise Stop(msg)
    with _bar() as advance:
        with _staged(root, directory, model, advance) as staged:
            facts = _tried(staged, model, advance)
            version = _put(root, staged, model, version)
        told = _awaited(admin, model, version, given, advance)
    told = {"model": model, "version": version, "check": facts, **told}
    if given["as_json"]:
        print_json(told)
    else:
        _say(told)


def _check_version(version: str | None) -> None:
    from loaders.repository import is_version

    if version is not None and not is_version(version):
        msg = f"version {version!r}: expected a positive integer without leading zeros"
        raise Stop(msg)


@contextlib.contextmanager
def _staged(root: Path, directory: Path, model: str, advance: Advance) -> Iterator[Path]:
    """A repository of its own within the repository, with the files as version 1 of the model; gone afterwards."""
    staged = root / f"{STAGED}{secrets.token_hex(8)}"
    try:
        target = staged / model / "1"
        target.mkdir(parents=True)
        files = list(_files(directory))
        total = float(sum(path.stat().st_size for path in files))
        done = 0.0
        for path in files:
            place = target / path.relative_to(directory)
            place.parent.mkdir(parents=True, exist_ok=True)
            for size in _copied(path, place):
                done += size
                advance("copied", done, total)
        # What the model's other versions share: settings, names of classes.
        if (root / model).is_dir():
            for shared in (root / model).iterdir():
                if shared.is_file() and not shared.name.startswith("."):
                    shutil.copyfile(shared, staged / model / shared.name)
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _files(directory: Path) -> Iterator[Path]:
    """Every file below, in order.

    Raises:
        Stop: what is neither file nor directory: a link would be another file tomorrow.
    """
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            yield path
        elif not stat.S_ISDIR(mode):
            msg = f"{path} is no plain file: put a copy of what it stands for in its place"
            raise Stop(msg)


def _copied(source: Path, place: Path) -> Iterator[int]:
    """Copy and sync one file; yields the bytes of each piece."""
    with source.open("rb") as read, place.open("xb") as written:
        while piece := read.read(_PIECE_BYTES):
            written.write(piece)
            yield len(piece)
        written.flush()
        os.fsync(written.fileno())


def _tried(staged: Path, model: str, advance: Advance) -> dict[str, Any]:
    """What a trial of the copy says.

    Raises:
        Stop: it is refused, with the reason (1).
    """
    # Here, not above: it imports ONNX Runtime.
    from gateway.checking import check_versions

    advance("tried", 0, None)
    config = gateway.config.load()[0]
    (facts,) = check_versions(staged, [(model, "1")], config.session, staged / ".trials")
    shutil.rmtree(staged / ".trials", ignore_errors=True)
    if not facts["ok"]:
        # It was tried as version 1 of nowhere: the name is the model's alone.
        why = facts["reason"].replace(f"{model}/1", model, 1)
        msg = f"refused, nothing was published: {why}"
        raise Stop(msg, NO)
    return {name: value for name, value in facts.items() if name not in {"model", "version", "ok"}}


def _put(root: Path, staged: Path, model: str, version: str | None) -> str:
    """Rename it into its place; the version that it became.

    Raises:
        Stop: the version is there already, with other files (1).
    """
    from loaders.bundle import tree_sha256
    from loaders.repository import version_directory

    made = version_directory(staged, model, "1")
    home = root / model
    home.mkdir(exist_ok=True)
    newest = _newest(home)
    if (
        version is None
        and newest
        and tree_sha256(version_directory(root, model, str(newest))) == tree_sha256(made)
    ):
        # Asked for again, after an interruption: the next version would be the same one twice.
        return str(newest)
    while True:
        name = version or str(_newest(home) + 1)
        place = version_directory(root, model, name)
        try:
            made.rename(place)
        except OSError as exc:
            if exc.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            if tree_sha256(place) == tree_sha256(made):
                return name
            if version is not None:
                msg = (
                    f"{model}/{version} is there already, with other files, and a version never changes: leave VERSION"
                    " out to take the next"
                )
                raise Stop(msg, NO) from exc
            continue
        for directory in (home, root):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        return name


def _newest(home: Path) -> int:
    from loaders.repository import is_version

    return max((int(path.name) for path in home.iterdir() if is_version(path.name)), default=0)


def _awaited(
    admin: Client, model: str, version: str, given: dict[str, Any], advance: Advance
) -> dict[str, Any]:
    """Have it loaded, and wait until every worker has it ready.

    Raises:
        Stop: a worker refused it, or it took too long (1); the gateway looks elsewhere (2).
    """
    reason, until_s = given["reason"], time.monotonic() + given["wait_s"]
    admin.send("POST", "/admin/v1/models/refresh", body={"reason": reason})
    asked, since_s = False, time.monotonic()
    while True:
        body = admin.get(f"/admin/v1/models/{model}").body
        row = next((one for one in body.get("versions", ()) if one.get("version") == version), None)
        if row is None:
            msg = (
                f"{model}/{version} is in the repository, and {admin.url} does not see it: it serves another one;"
                " name its repository with --models"
            )
            raise Stop(msg)
        state, workers = row.get("state"), row.get("workers") or {}
        advance("ready in workers", sum(one == "ready" for one in workers.values()), len(workers) or None)
        if state == "ready":
            return {"workers": len(workers), **_traffic(admin, model, version)}
        if state == "failed":
            msg = f"{model}/{version} is in the repository, and not served: {row.get('reason')}"
            raise Stop(msg, NO)
        if state == "absent" and not asked and time.monotonic() >= since_s + ABSENT_S:
            # The model's settings choose other versions: asked for by name it comes.
            asked = True
            admin.send("POST", f"/admin/v1/models/{model}/load", body={"version": version, "reason": reason})
        if time.monotonic() > until_s:
            msg = f"{model}/{version} is {state} after {given['wait_s']:g} s; `tidegate model show {model}` says more"
            raise Stop(msg, NO)
        time.sleep(POLL_S)


def _traffic(admin: Client, model: str, version: str) -> dict[str, Any]:
    """Which share it has: none, or all where it is the first of its model, whose route comes a moment later."""
    until_s = time.monotonic() + ROUTE_S
    while True:
        routes = admin.get("/admin/v1/routes").body.get("routes", ())
        route = next((one for one in routes if one.get("model") == model), None)
        if route is not None or time.monotonic() > until_s:
            break
        time.sleep(POLL_S)
    variants = route["variants"] if route is not None else ()
    held = sum(v.get("weight_bp", 0) for v in variants if v["version"] == version and v["role"] != "shadow")
    return {"weight_bp": held, "revision": route["revision"] if route is not None else None}


def _say(told: dict[str, Any]) -> None:
    model, version, facts = told["model"], told["version"], told["check"]
    golden = f", {facts['golden_lines']} golden lines met" if facts.get("golden_lines") else ""
    say(f"{model} version {version} is ready in {told['workers']} workers{golden}")
    for warning in facts.get("warnings", ()):
        say(f"warning: {warning}")
    if told["weight_bp"]:
        say(f"it has {percent(told['weight_bp'])} of the traffic")
    else:
        say(f'it has no traffic; `tidegate route shift {model} {version}=1% --reason "…"` gives it some')


@contextlib.contextmanager
def _bar() -> Iterator[Advance]:
    """A bar on stderr where a person looks; one line, that says what is being done."""
    import rich.console
    import rich.progress

    stderr = rich.console.Console(stderr=True)
    if not stderr.is_terminal:
        yield lambda what, done, total: None
        return
    shown = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TimeElapsedColumn(),
        console=stderr,
        transient=True,
    )
    with shown:
        task = shown.add_task("", total=None)
        yield lambda what, done, total: shown.update(task, description=what, completed=done, total=total)
