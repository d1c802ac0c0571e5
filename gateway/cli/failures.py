"""How a command ends: exit codes, and one line on stderr for whatever went wrong.

Commands raise; `gateway/cli/group.py` calls `explain` once, at the outermost place. So no command
holds error printing of its own, and a user's mistake never shows a trace.
"""

from __future__ import annotations

import sys

import click

from gateway.errors import GatewayError

YES = 0
NO = 1
INPUT = 2
UNREACHABLE = 3
INTERRUPTED = 130

_EXIT_CODES = {
    "state_conflict": NO,
    "revision_conflict": NO,
    "model_not_ready": NO,
    "overloaded": NO,
    "audit_unavailable": NO,
    "source_gap": NO,
    "frame_corrupt": NO,
    "frame_newer": NO,
    "log_incomplete": NO,
    "feed_unreachable": UNREACHABLE,
}
"""By an error's `code`; all others are INPUT."""


class Stop(Exception):
    """End the command with a sentence and an exit code.

    Args:
        message: what is wrong and what to do next.
        exit_code: NO, INPUT or UNREACHABLE.
    """

    def __init__(self, message: str, exit_code: int = INPUT) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code of an error; None for one that is a defect of ours."""
    if told := _of_http(error):
        return told
    match error:
        case click.exceptions.NoArgsIsHelpError():
            return error.ctx.get_help() if error.ctx else "", INPUT
        case Stop():
            return f"tidegate: {error}", error.exit_code
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "tidegate"
            return f"tidegate: {_flat(error.format_message())} (see {path} --help)", INPUT
        case click.ClickException():
            return f"tidegate: {error.format_message()}", error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return "tidegate: interrupted", INTERRUPTED
        case GatewayError():
            return f"tidegate: {_flat(str(error))}", _EXIT_CODES.get(error.code, INPUT)
        case OSError() if error.strerror and not isinstance(error, BrokenPipeError):
            named = f"{error.filename}: " if error.filename else ""
            return f"tidegate: {named}{error.strerror}", INPUT
        case ModuleNotFoundError():
            return f"tidegate: this needs the package {error.name}, which is not installed", INPUT
        case _:
            return None


def _of_http(error: BaseException) -> tuple[str, int] | None:
    """As `explain`, of what httpx raises. It is not imported for this: `serve` needs it not and starts sooner."""
    httpx = sys.modules.get("httpx")
    if httpx is None:
        return None
    if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
        return f"tidegate: not a URL: {error}; expected http://HOST:PORT", INPUT
    if isinstance(error, httpx.HTTPError):
        return f"tidegate: no usable answer from the gateway: {_flat(str(error))}", UNREACHABLE
    return None


def _flat(text: str) -> str:
    return " ".join(text.split())
