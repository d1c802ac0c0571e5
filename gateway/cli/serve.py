"""`tidegate serve`: check the configuration, then become the supervisor.

The process replaces itself, so that the supervisor has the pid that the shell, systemd or a
container knows, and signals reach it with nothing between.
"""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

import click
import msgspec

import gateway
import gateway.config
from gateway.cli.config import file_option, set_option
from gateway.cli.failures import Stop
from gateway.memory import sum_at_start
from gateway.process import Context
from gateway.settings import Config


@click.command("serve")
@click.argument("repo", required=False, metavar="[REPO]")
@file_option
@set_option
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port for inference; 0 takes a free one.")
@click.option("--admin-port", type=click.IntRange(0, 65535), help="Port for the admin API.")
@click.option("--state-dir", metavar="DIR", help="Where log, routes and tokens are kept.")
def command(
    repo: str | None,
    file: Path | None,
    overrides: tuple[str, ...],
    workers: int | None,
    port: int | None,
    admin_port: int | None,
    state_dir: str | None,
) -> None:
    """Serve the model repository REPO in the foreground; SIGTERM or Ctrl-C drains and stops."""
    flags = {"workers": workers, "data.port": port, "admin.port": admin_port}
    named = tuple(f"{key}={value}" for key, value in flags.items() if value is not None)
    config, _ = gateway.config.load(file, (*overrides, *named))
    config = msgspec.structs.replace(
        config, models=repo or config.models, state_dir=state_dir or config.state_dir
    )
    context = make_context(config)
    says, fits = sum_at_start(config, Path(context.models), context.state_path)
    if not fits:
        msg = (
            f"not enough memory: {says}. Serve fewer models or workers, or set session.memory_max_bytes"
            " if more may be used"
        )
        raise Stop(msg)
    click.echo(f"memory: {says}", err=True)
    become_supervisor(context)


def make_context(config: Config) -> Context:
    """What the supervisor starts with; paths made absolute.

    Raises:
        Stop: the model repository is not a directory.
    """
    models = Path(config.models)
    if not models.is_dir():
        what = "is not a directory" if models.exists() else "does not exist"
        msg = (
            f"model repository {config.models} {what}: make it and put a model at"
            f" {models / 'NAME' / '1' / 'model.onnx'}, or name another with `tidegate serve REPO`"
        )
        raise Stop(msg)
    return Context(
        config=gateway.config.encode(config),
        models=str(models.resolve()),
        state_dir=str(Path(config.state_dir).resolve()),
    )


def become_supervisor(context: Context) -> None:
    """Replace this process; does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(  # noqa: S606
        sys.executable,
        [sys.executable, "-P", "-m", "gateway.supervisor"],
        child_environment(context),
    )


def child_environment(context: Context) -> dict[str, str]:
    """The context's environment, with our packages findable under `-P`.

    `-P` keeps the working directory, and so the packages of a source tree, off the search path.
    Installed packages need nothing: site-packages ahead of the standard library would shadow it.
    """
    environment = context.to_env()
    root = str(Path(gateway.__file__).resolve().parent.parent)
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    if root not in {str(Path(path).resolve()) for path in installed}:
        before = environment.get("PYTHONPATH", "")
        if root not in before.split(os.pathsep):
            environment["PYTHONPATH"] = os.pathsep.join(part for part in (root, before) if part)
    return environment
