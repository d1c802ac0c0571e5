"""The whole configuration: its reader.

Order: defaults < TOML file < environment (`TIDEGATE_AUDIT__LEVEL`) < `--set audit.level=fsync`.
The tree is `gateway/settings.py`'s. Only `load` builds a `Config`, since msgspec checks
bounds only when it converts; nothing else reads the environment. Objects get their own section.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import ConfigInvalid
from gateway.kafka import check as check_kafka
from gateway.settings import Config

ENV_PREFIX = "TIDEGATE_"
DEFAULT_FILE = "tidegate.toml"
NO_SETTINGS = frozenset(("TIDEGATE_TOKEN_FILE",))
"""Variables of the command line's own, beside the settings."""


def load(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> tuple[Config, dict[str, str]]:
    """Read the configuration; returns it and each set key's origin.

    Args:
        file: a TOML file; None reads ./tidegate.toml when it exists.
        overrides: "a.b=value" texts of `--set`.
        environ: the environment (tests give their own).

    Raises:
        ConfigInvalid: one line naming origin, key, what was found and what was expected.
    """
    environ = os.environ if environ is None else environ
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if file is None and Path(DEFAULT_FILE).is_file():
        file = Path(DEFAULT_FILE)
    if file is not None:
        for path, value in _leaves(_read(file)):
            _put(tree, path, value, str(file))
            origins[".".join(path)] = str(file)
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in NO_SETTINGS:
            key = name[len(ENV_PREFIX) :].lower().replace("__", ".")
            _put(tree, key.split("."), _parsed(environ[name]), name)
            origins[key] = name
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            msg = f"--set {text}: expected key=value, as in audit.level=fsync"
            raise ConfigInvalid(msg)
        _put(tree, key.strip().split("."), _parsed(value), f"--set {key}")
        origins[key.strip()] = "--set"
    try:
        config = msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as exc:
        raise ConfigInvalid(_explain(str(exc), origins)) from None
    _check_across(config)
    return config, origins


def _check_across(config: Config) -> None:
    """What one key says of another."""
    if not config.admin.on_loopback and config.admin.tls is None:
        msg = (
            f"admin.host is {config.admin.host!r}: only loopback addresses are served without TLS; set"
            " admin.tls.cert and admin.tls.key, and make a token (`tidegate token new`)"
        )
        raise ConfigInvalid(msg)
    for text in config.data.proxies:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            msg = (
                f"data.proxies holds {text!r}; expected addresses or networks, as in 127.0.0.1 or 10.0.0.0/8"
            )
            raise ConfigInvalid(msg) from None
    check_kafka(config.kafka)
    if config.sidecar.source == "kafka" and config.kafka is None:
        msg = (
            "sidecar.source is 'kafka', and there is no [kafka] section: set kafka.bootstrap_servers,"
            ' or sidecar.source = "spool"'
        )
        raise ConfigInvalid(msg)


def encode(config: Config) -> str:
    """The configuration as JSON, for child processes."""
    return msgspec.json.encode(config).decode()


def decode(text: str) -> Config:
    """What `encode` wrote."""
    return msgspec.json.decode(text, type=Config)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as exc:
        msg = f"config file {file}: {exc.strerror}"
        raise ConfigInvalid(msg) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        msg = f"config file {file}: not TOML: {exc}"
        raise ConfigInvalid(msg) from exc


def _leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    # Paths, not dotted texts: names of models and outputs may have dots.
    out: list[tuple[tuple[str, ...], Any]] = []
    for name, value in tree.items():
        path = (*above, name)
        # An empty section stands for itself: `[kafka.tls]` switches TLS on.
        out.extend(_leaves(value, path) if isinstance(value, dict) and value else [(path, value)])
    return out


def _parsed(text: str) -> Any:
    if text[:1] in "[{":
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    return text


def _put(tree: dict[str, Any], path: Sequence[str], value: Any, origin: str) -> None:
    *parents, leaf = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            msg = f"{origin}: {'.'.join(path)}: {parent} is a value, not a section"
            raise ConfigInvalid(msg)
    tree[leaf] = value


def _explain(text: str, origins: dict[str, str]) -> str:
    path = text.rpartition("`$.")[2].rstrip("`") if "`$." in text else ""
    unknown = text.partition("unknown field `")[2].partition("`")[0]
    found = next(
        (key for key in origins if unknown and unknown in (key.split(".")[-1], key.split(".")[0])), None
    )
    # Names that a user chose (of models, versions, outputs) are `[...]` in what msgspec says.
    form = re.escape(path).replace(re.escape("[...]"), r"\..+")
    for pattern in (form, rf"{form}\..+", form.removesuffix(r"\..+")) if path else ():
        found = found or next((key for key in origins if re.fullmatch(pattern, key)), None)
    if found is None:
        return f"config: {text.replace('`$.', '`')}"
    shown = found if "[...]" in path else path
    return f"{origins[found]}: {text.replace(f'`$.{path}`', f'`{shown}`')}"
