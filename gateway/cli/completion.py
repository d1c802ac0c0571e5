"""Completion in shells: `tidegate completion SHELL` prints the script, and here stand the names that it asks for.

What a shell asks while somebody types must be quick and quiet: a gateway that does not answer in half a second, a
missing state directory, a refused token give no names, and never a word on the terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

PROGRAM, VARIABLE = "tidegate", "_TIDEGATE_COMPLETE"
TIMEOUT_S = 0.5
SHELLS = ("bash", "zsh", "fish")
WHERE = {
    "bash": 'eval "$(tidegate completion bash)"       # in ~/.bashrc',
    "zsh": 'eval "$(tidegate completion zsh)"        # in ~/.zshrc, behind compinit',
    "fish": "tidegate completion fish | source        # in ~/.config/fish/config.fish",
}
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command("completion", epilog="Then: " + "; ".join(WHERE.values()))
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and models in SHELL."""
    made = get_completion_class(shell)
    assert made is not None
    root = context.find_root().command
    # Not `source`: it would start a bash to ask for its version.
    script = made(root, {}, PROGRAM, VARIABLE)
    click.echo(script.source_template % script.source_vars())


def model_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models that the gateway knows."""
    body = _asked(context, "/admin/v1/models")
    names = [one.get("name") for one in (body or {}).get("models", ())]
    return _items(names, incomplete)


def version_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Versions of the model that stands on the line already."""
    body = _asked(context, "/admin/v1/models/", context.params.get("model"))
    return _items([one.get("version") for one in (body or {}).get("versions", ())], incomplete)


def variant_names(behind: str = "") -> Complete:
    """Canaries of the route of the model that stands on the line already.

    Args:
        behind: what follows a name, as in `canary=`.
    """

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        body = _asked(context, "/admin/v1/routes/", context.params.get("model"))
        variants = [one for one in (body or {}).get("variants", ()) if one.get("role") == "canary"]
        return _items([f"{one.get('name')}{behind}" for one in variants], incomplete)

    return complete


def model_argument(*, required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The argument MODEL, completed by the gateway's models."""
    return click.argument("model", required=required, shell_complete=model_names)


def _items(names: list[Any], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if isinstance(name, str) and name.startswith(incomplete)]


def _asked(context: click.Context, path: str, name: Any = "") -> dict[str, Any] | None:
    """What the gateway that the line names, or the usual one, answers; None: nothing of use."""
    # Imported when a name is asked for: most of what is completed is in the command line itself.
    from gateway.cli.client import Access, admin_client, quoted

    if name is None:
        return None
    given = context.params
    try:
        token_file = given.get("token_file")
        access = Access(Path(token_file) if token_file else None, cacert=given.get("cacert"))
        with closing(admin_client(given.get("url"), given.get("state_dir"), access, TIMEOUT_S)) as client:
            body = client.get(path + (quoted(name) if name else "")).body
    except Exception:  # noqa: BLE001  somebody is typing: no names, and no word of why
        return None
    return body if isinstance(body, dict) else None
