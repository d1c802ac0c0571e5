"""`tidegate serve` up to the moment it becomes the supervisor, and `tidegate config`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

import gateway.config
from gateway.process import CONTEXT_VARIABLE


@pytest.fixture
def became(monkeypatch):
    """What would have been executed; the signals that the next image finds blocked are this process's again."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    yield calls
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_becomes_the_supervisor_with_the_context(run, tmp_path, became) -> None:
    """Absolute paths, flags over the file, our packages findable under -P."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "tidegate.toml").write_text('workers = 2\nstate_dir = "./s"\n[data]\nport = 1\n')
    result = run("serve", "repo", "--port", "0", "--set", "audit.level=fsync", "--workers", "3")
    assert result.exit_code == 0, result.stderr
    ((executable, argv, environment),) = became
    assert argv == [executable, "-P", "-m", "gateway.supervisor"]
    assert executable == sys.executable
    context = json.loads(environment[CONTEXT_VARIABLE])
    assert context["models"] == str(tmp_path / "repo")
    assert context["state_dir"] == str(tmp_path / "s")
    config = gateway.config.decode(context["config"])
    assert (config.workers, config.data.port, config.audit.level) == (3, 0, "fsync")
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    root = str(Path(gateway.__file__).resolve().parents[1])
    assert root in environment["PYTHONPATH"].split(os.pathsep)


def test_missing_repository_is_one_line(run, became) -> None:
    """Exit 2, names it, says what to do."""
    result = run("serve", "nowhere")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr
    assert "model.onnx" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert became == []


@pytest.mark.parametrize(
    ("name", "content", "mode", "args", "said"),
    [
        ("state/tokens.toml", "garbage = [", 0o600, (), "tokens.toml"),
        ("state/tokens.toml", "", 0o644, (), "chmod 600"),
        ("state/admin.token", "x" * 64, 0o644, (), "admin.token"),
        ("key.pem", "junk", 0o600, ("admin.tls.cert=key.pem", "admin.tls.key=key.pem"), "admin.tls.cert"),
        ("key.pem", "junk", 0o600, ("admin.tls.cert=no.pem", "admin.tls.key=no.pem"), "admin.tls.key"),
    ],
)
def test_a_listener_that_cannot_be_had_is_one_line(  # noqa: PLR0913
    run, tmp_path, became, name, content, mode, args, said
) -> None:
    """Exit 2 before anything runs, however slow the host: tokens and TLS files that control would only refuse."""
    (tmp_path / "repo").mkdir()
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    options = [word for one in args for word in ("--set", one)]
    result = run("serve", "repo", "--state-dir", "state", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert became == []


def test_bad_configuration_is_one_line(run, tmp_path, became) -> None:
    """Exit 2 with file or flag, key and value."""
    (tmp_path / "models").mkdir()
    (tmp_path / "tidegate.toml").write_text('[audit]\nlevel = "loud"\n')
    for args in (("serve",), ("config", "check"), ("config", "show")):
        result = run(*args)
        assert result.exit_code == 2
        assert "tidegate.toml" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert run("serve", "--config", "absent.toml").exit_code == 2
    assert became == []


def test_config_check_and_show(run) -> None:
    """Valid: exit 0; show names each value's origin."""
    assert run("config", "check").exit_code == 0
    shown = json.loads(run("config", "show", "--set", "workers=2", "--json").stdout)
    assert shown["config"]["workers"] == 2
    assert shown["origins"] == {"workers": "--set"}
    assert "audit.level" in run("config", "show").stdout
