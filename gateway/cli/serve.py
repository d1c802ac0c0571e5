"""`tidegate serve`: check the configuration, then become the supervisor.

The process replaces itself, so that the supervisor has the pid that the shell, systemd or a
container knows, and signals reach it with nothing between.
"""

from __future__ import annotations

import os
import signal
import site
import sys
import time
from pathlib import Path

import click
import msgspec

import gateway
import gateway.config
from gateway.cli.config import file_option, set_option
from gateway.cli.failures import Stop
from gateway.control.token_table import read_table
from gateway.control.tokens import CLIENTS, PRINCIPALS, Tokens, usable_secret
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
    asked = Asked(
        repo=repo,
        file=None if file is None else str(file),
        overrides=overrides,
        flags={"workers": workers, "data.port": port, "admin.port": admin_port},
        state_dir=state_dir,
    )
    context, says = prepare(asked)
    click.echo(f"memory: {says}", err=True)
    become_supervisor(context)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What `serve` was given. A gateway keeps it, so that an upgrade reads the same configuration again."""

    repo: str | None = None
    file: str | None = None
    overrides: tuple[str, ...] = ()
    flags: dict[str, int | None] = {}
    state_dir: str | None = None

    def read(self) -> Config:
        """The configuration, from where it stands now.

        Raises:
            ConfigInvalid: one line naming what is wrong.
        """
        named = tuple(f"{key}={value}" for key, value in self.flags.items() if value is not None)
        file = None if self.file is None else Path(self.file)
        config, _ = gateway.config.load(file, (*self.overrides, *named))
        return msgspec.structs.replace(
            config, models=self.repo or config.models, state_dir=self.state_dir or config.state_dir
        )


def prepare(asked: Asked) -> tuple[Context, str]:
    """What the supervisor starts with, and the memory plan in words.

    Raises:
        ConfigInvalid, Stop: the configuration is wrong, there is no repository, the admin listener could not be had as
            it is configured, or there is not enough memory.
    """
    config = asked.read()
    context = make_context(config)
    check_access(config, context.state_path)
    plan = sum_at_start(config, Path(context.models), context.state_path)
    if not plan.fits:
        msg = (
            f"not enough memory: {plan.says}. Serve fewer models or workers, or set session.memory_max_bytes"
            " if more may be used"
        )
        raise Stop(msg)
    completed = context.with_(
        asked=msgspec.json.encode(asked).decode(),
        directory=str(Path.cwd()),
        code_path=code_path(),
        version=gateway.__version__,
        one_more=plan.one_more,
    )
    return completed, plan.says


def make_context(config: Config) -> Context:
    """The paths that the supervisor starts with, made absolute.

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


def check_access(config: Config, state_dir: Path) -> None:
    """What control needs before it opens its listener, while nothing runs that would have to be stopped again.

    Raises:
        ConfigInvalid: a token's file or one of TLS cannot be used; names it and says what to do.
    """
    for name in (*PRINCIPALS, *CLIENTS):
        usable_secret(state_dir / f"{name}.token")
    read_table(state_dir, time.time_ns())
    if config.admin.tls is not None or not config.admin.on_loopback:
        # Not needed otherwise, and takes longer than all else here.
        from gateway.control.listener import certificates_of  # noqa: PLC0415

        certificates_of(config.admin, Tokens(state_dir))


def become_supervisor(context: Context) -> None:
    """Replace this process; does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Signals that come before the supervisor takes them wait for it; a terminal that closes just now ends nothing.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
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
    root = context.code_path
    before = environment.get("PYTHONPATH", "")
    if root and root not in before.split(os.pathsep):
        environment["PYTHONPATH"] = os.pathsep.join(part for part in (root, before) if part)
    return environment


def code_path() -> str:
    """The directory of our packages where it must be named in PYTHONPATH; empty where they are installed."""
    root = str(Path(gateway.__file__).resolve().parent.parent)
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    return "" if root in {str(Path(path).resolve()) for path in installed} else root
