"""`tidegate model profile`: what a version's reference held in each feature, and what becomes of other values.

Read from the repository; no gateway needs to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway.cli.client import repository, state_dir_option, state_directory
from gateway.cli.failures import Stop
from gateway.cli.screen import json_option, print_json, say, table
from loaders.bundle import InputSettings, read_bundle
from loaders.errors import ModelError
from loaders.reference import FeatureProfile, InputProfile, Profile, read_profile
from loaders.repository import scan, version_directory

_SHOWN = 12


@click.command("profile")
@click.argument("model")
@click.argument("version", required=False)
@click.option("--models", metavar="DIR", help="The model repository [default: what the gateway served].")
@state_dir_option
@json_option
def command(
    model: str, version: str | None, models: str | None, state_dir: str | None, as_json: bool
) -> None:
    """Show what the reference of VERSION of MODEL [default: the newest] held in each feature."""
    root = Path(models) if models is not None else repository(state_directory(state_dir))
    try:
        directory = version_directory(root, model, version or _newest(root, model))
        if not directory.is_dir():
            msg = f"no version {version} of model {model} in {root}"
            raise Stop(msg)
        settings = read_bundle(directory).settings
        found = read_profile(directory, settings)
    except ModelError as exc:
        raise Stop(str(exc)) from exc
    except OSError as exc:
        msg = f"{model}: its files cannot be read: {exc.strerror}"
        raise Stop(msg) from exc
    if as_json:
        print_json(_document(model, directory.name, found, settings.inputs))
        return
    for one in found.inputs.values():
        table(
            ("feature", "smallest", "largest", "missing", "categories", "policy"),
            [_row(feature, settings.inputs[one.name]) for feature in one.features],
            title=f"input {one.name} of {model} version {directory.name}: {one.rows} rows of reference",
        )
        _say_policy(one, settings.inputs[one.name])
    if not found.inputs:
        say(
            f"{model} version {directory.name}: its bundle.toml describes no inputs; name their features there"
        )


def _newest(root: Path, model: str) -> str:
    versions = scan(root).models.get(model)
    if not versions:
        msg = f"no model {model} in {root}; name the repository with --models"
        raise Stop(msg)
    return max(versions, key=int)


def _policy(feature: FeatureProfile, settings: InputSettings) -> str:
    return settings.policies.get(feature.name, settings.policy)


def _row(feature: FeatureProfile, settings: InputSettings) -> tuple[Any, ...]:
    categories = None
    if feature.categories is not None:
        shown = [f"{c:.7g}" if isinstance(c, float) else str(c) for c in feature.categories[:_SHOWN]]
        more = "" if len(feature.categories) <= _SHOWN else f", … {len(feature.categories)} in all"
        categories = ", ".join(shown) + more
    missing = "yes" if feature.has_missing else "never"
    return (
        feature.name,
        feature.minimum,
        feature.maximum,
        missing,
        categories,
        _policy(feature, settings),
    )


def _say_policy(one: InputProfile, settings: InputSettings) -> None:
    policies = {_policy(feature, settings) for feature in one.features}
    if policies == {"pass"}:
        say(f'requests are not held against it; policy = "flag" or "reject" in [inputs.{one.name}] does that')
    elif settings.range_slack:
        say(f"ranges count as {settings.range_slack:g} of their width wider at either end")


def _document(model: str, version: str, found: Profile, inputs: dict[str, InputSettings]) -> dict[str, Any]:
    return {
        "model": model,
        "version": version,
        "inputs": [
            {
                "name": one.name,
                "rows": one.rows,
                "range_slack": inputs[one.name].range_slack,
                "features": [
                    {
                        "name": feature.name,
                        "min": feature.minimum,
                        "max": feature.maximum,
                        "has_missing": feature.has_missing,
                        "categories": feature.categories,
                        "policy": _policy(feature, inputs[one.name]),
                    }
                    for feature in one.features
                ],
            }
            for one in found.inputs.values()
        ],
    }
