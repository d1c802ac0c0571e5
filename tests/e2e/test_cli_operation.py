"""The command line against a real gateway: stop, bounds, tokens, leases, history, and one change for one key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

from bench.serving import Gateway
from gateway.cli import command
from tests.e2e.onnx_models import write_linear

ASK = ("predict", "mine", "--input", "X=[[1,2,3,4]]")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two workers, two versions."""
    base = tmp_path_factory.mktemp("operated")
    for version, scale in (("1", 0.25), ("2", 0.5)):
        write_linear(base / "models", "mine", version, scale=scale)
    made = Gateway(base / "models", base / "state", workers=2)
    try:
        yield made.start()
        assert made.stop() == 0, made.said()
    finally:
        made.kill9_all()


def tidegate(gateway: Gateway, *args: str) -> click.testing.Result:
    """`tidegate ARGS...` in this process."""
    result = click.testing.CliRunner().invoke(command, [*args, "--state-dir", str(gateway.state_dir)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(gateway: Gateway, *args: str) -> str:
    """What a command that must succeed prints."""
    result = tidegate(gateway, *args)
    assert result.exit_code == 0, f"{args}: {result.output}"
    return result.stdout


def answer(gateway: Gateway, *args: str) -> Any:
    """The same as JSON."""
    return json.loads(done(gateway, *args, "--json"))


def test_a_stopped_model_answers_nobody_until_it_is_resumed(gateway: Gateway) -> None:
    """In both workers; the refusal names the command that ends it."""
    done(gateway, *ASK)
    done(gateway, "model", "stop", "mine", "--reason", "it lies")
    for _ in range(4):
        refused = tidegate(gateway, *ASK)
        assert refused.exit_code == 1
        assert "`tidegate model resume mine" in refused.stderr
    assert "stopped since" in done(gateway, "route", "show", "mine")
    done(gateway, "model", "resume", "mine", "--reason", "it was the caller")
    done(gateway, *ASK)


def test_bounds_are_set_shown_and_cleared(gateway: Gateway) -> None:
    """One at a time, each beside the others; history has them."""
    at = ("route", "bounds", "mine")
    assert "no bounds" in done(gateway, *at)
    done(gateway, *at, "--max-canary", "20%", "--reason", "nights")
    done(gateway, *at, "--dwell-s", "60", "--reason", "slowly")
    assert "at most 20% for a canary, 60 s after the last change" in done(gateway, *at)
    assert "at most 20%" in done(gateway, "route", "show", "mine")
    done(gateway, *at, "--clear", "--reason", "days")
    assert "no bounds" in done(gateway, *at)
    assert "nights" in done(gateway, "route", "history", "mine")


def test_a_token_opens_what_it_names_until_it_is_revoked(gateway: Gateway, tmp_path: Path) -> None:
    """Made into a file, used by another, refused with the scope that it lacks, and shut out at once."""
    out = tmp_path / "ci.token"
    scopes = ("--scope", "read", "--scope", "publish:mine")
    done(gateway, "token", "new", "ci", *scopes, "--expires", "1h", "--reason", "pipeline", "--out", str(out))
    mine = ("--token-file", str(out))
    assert "mine" in done(gateway, "model", "list", *mine)
    refused = tidegate(gateway, "route", "shift", "mine", "2=1%", "--reason", "r", *mine)
    assert refused.exit_code == 2
    assert "`tidegate token new NAME --scope shift:mine" in refused.stderr
    (token,) = answer(gateway, "token", "list")["tokens"]
    assert (token["principal"], sorted(token["scopes"])) == ("ci", ["publish:mine", "read"])
    assert out.read_text().strip() not in done(gateway, "token", "list", "--json")
    done(gateway, "token", "revoke", token["id"], "--reason", "it is over")
    shut = tidegate(gateway, "model", "list", *mine)
    assert shut.exit_code == 2
    assert "`tidegate token list`" in shut.stderr


def test_history_is_read_in_parts_down_to_the_first_revision(gateway: Gateway) -> None:
    """By the commands that it says itself."""
    seen: list[int] = []
    before: tuple[str, ...] = ()
    while 1 not in seen:
        entries = answer(gateway, "route", "history", "mine", "--limit", "2", *before)["entries"]
        assert entries
        made = [entry["revision"] for entry in entries if entry["is_revision"]]
        seen += made
        before = ("--before", str(made[-1]))
    assert seen == list(range(seen[0], 0, -1))


def test_the_same_key_makes_one_change(gateway: Gateway) -> None:
    """A command that is repeated after a lost answer: one revision, and the first one's answer."""
    revision = answer(gateway, "route", "show", "mine")["revision"]
    words = (
        "route",
        "freeze",
        "mine",
        "--reason",
        "r",
        "--if-match",
        str(revision),
        "--idempotency-key",
        "k-1",
    )
    first, second = (answer(gateway, *words) for _ in range(2))
    assert first["revision"] == second["revision"] == revision + 1
    done(gateway, "route", "thaw", "mine", "--reason", "r")


def test_a_lease_can_only_be_renewed_where_there_is_one(gateway: Gateway) -> None:
    """Exit 1 and why."""
    refused = tidegate(gateway, "lease", "renew", "mine", "--reason", "r")
    assert refused.exit_code == 1
    assert "lease" in refused.stderr
