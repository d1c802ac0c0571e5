"""Who the command line is to a gateway, and `tidegate token`."""

from __future__ import annotations

import json
import os
import stat
import time

import pytest

from gateway.cli import client
from gateway.cli.failures import Stop

ADDRESS = "/admin/v1/tokens"
MADE = {"id": "k3", "token": "tg_k3_s3cret"}


def test_the_token_of_the_state_directory_is_shown_unless_another_is_named(
    run, fake, state_dir, tmp_path, monkeypatch
) -> None:
    """--token-file goes before TIDEGATE_TOKEN_FILE, and that before admin.token; it is no setting of the gateway."""
    fake.on("GET", ADDRESS, {"tokens": []})
    for name in ("environment", "option"):
        (tmp_path / name).write_text(f"of-{name}\n")
    at = ("token", "list", "--state-dir", str(state_dir))
    assert run(*at).exit_code == 0
    monkeypatch.setenv("TIDEGATE_TOKEN_FILE", str(tmp_path / "environment"))
    assert run(*at).exit_code == 0
    assert run("config", "check").exit_code == 0
    assert run(*at, "--token-file", str(tmp_path / "option")).exit_code == 0
    shown = [seen.headers["authorization"].removeprefix("Bearer ") for seen in fake.seen]
    assert shown == ["secret-token", "of-environment", "of-option"]


def test_a_named_token_that_cannot_be_read_is_said_before_anything_is_sent(
    run, fake, state_dir, tmp_path
) -> None:
    """Exit 2 with the file's name, never its content."""
    at = ("token", "list", "--state-dir", str(state_dir), "--token-file")
    gone = run(*at, str(tmp_path / "gone"))
    assert gone.exit_code == 2
    assert "gone: No such file" in gone.stderr
    (tmp_path / "two").write_text("one-secret\ntwo")
    two = run(*at, str(tmp_path / "two"))
    assert two.exit_code == 2
    assert "one-secret" not in two.stderr
    assert fake.seen == []


def test_predict_shows_a_token_only_when_one_is_named(run, fake, state_dir, tmp_path) -> None:
    """The admin's token is never sent to the data listener by itself."""
    (tmp_path / "mine").write_text("infer-token\n")
    at = ("predict", "m", "--state-dir", str(state_dir))
    run(*at)
    run(*at, "--token-file", str(tmp_path / "mine"))
    shown = [seen.headers.get("authorization") for seen in fake.seen]
    assert shown == [None, "Bearer infer-token"]


def test_this_hosts_token_goes_to_this_hosts_gateway_alone(
    fake, state_dir, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host gets a token that is named, or none; over TLS, never in clear."""
    read: list[object] = []
    monkeypatch.setattr(client, "Client", lambda url, flag, access, timeout_s: read.append(access.token_file))
    own = state_dir / "admin.token"
    for url in (None, fake.url, "http://127.0.0.1:1", "https://localhost:1", "unix:/run/admin.sock"):
        client.admin_client(url, str(state_dir), client.Access())
        assert read.pop() == own
    named = client.Access(tmp_path / "mine", named=True)
    for url, access in (
        ("https://gateway.example:8081", client.Access()),
        ("https://127.0.0.1.example:1", client.Access()),
        ("https://127.0.0.1:1", client.Access(cert=("mine.pem", None))),
        ("https://gateway.example:8081", named),
    ):
        client.admin_client(url, str(state_dir), access)
        assert read.pop() == access.token_file
    monkeypatch.undo()
    (tmp_path / "mine").write_text("t")
    with pytest.raises(Stop, match="not sent in clear"):
        client.admin_client("http://192.0.2.1:8081", str(state_dir), named).get("/admin/v1/models")


def test_tls_files_that_are_none_are_named(run, tmp_path) -> None:
    """Exit 2 with the file and the option."""
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for option in ("--cacert", "--cert"):
        result = run("token", "list", "--admin", "https://127.0.0.1:9", option, str(bad))
        assert result.exit_code == 2
        assert str(bad) in result.stderr
    assert run("token", "list", "--admin", "https://127.0.0.1:9", "--key", str(bad)).exit_code == 2


def test_token_new_sends_scopes_and_an_end(run, fake, state_dir) -> None:
    """The secret alone stands on stdout, for a pipe; what is said of it on stderr."""
    fake.on("POST", ADDRESS, MADE, 201)
    before_ns = time.time_ns()
    result = run(
        "token", "new", "ci", "--scope", "read", "--scope", "shift:flights", "--expires", "90d",
        "--reason", "the pipeline", "--state-dir", str(state_dir),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "tg_k3_s3cret\n"
    assert "token k3 of ci" in result.stderr
    assert "s3cret" not in result.stderr
    body = fake.seen[-1].body
    expires_ns = body.pop("expires_ns")
    assert body == {"principal": "ci", "scopes": ["read", "shift:flights"], "reason": "the pipeline"}
    assert 0 <= expires_ns - before_ns - 90 * 86_400 * 10**9 < 60 * 10**9


def test_token_new_writes_a_file_for_its_owner_alone(run, fake, state_dir, tmp_path) -> None:
    """Never over another file, none where the token is refused, and nothing of the secret on the terminal."""
    fake.on("POST", ADDRESS, MADE)
    out = tmp_path / "ci.token"
    words = ("token", "new", "ci", "--scope", "read", "--reason", "r", "--state-dir", str(state_dir))
    umask = os.umask(0)
    try:
        result = run(*words, "--out", str(out))
    finally:
        os.umask(umask)
    assert result.exit_code == 0, result.stderr
    assert out.read_text() == "tg_k3_s3cret\n"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "s3cret" not in result.output
    assert "s3cret" not in run(*words, "--out", str(tmp_path / "b"), "--json").output
    seen = len(fake.seen)
    assert run(*words, "--out", str(out)).exit_code == 2
    assert len(fake.seen) == seen
    fake.on("POST", ADDRESS, {"error": "two are valid already", "code": "state_conflict"}, 409)
    assert run(*words, "--out", str(tmp_path / "c")).exit_code == 1
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("span", ["90", "0d", "-1d", "d", "1y", "9999999d"])
def test_spans_are_read_strictly(run, fake, state_dir, span) -> None:
    """A span of no meaning makes no token."""
    words = ("token", "new", "ci", "--scope", "read", "--expires", span, "--reason", "r")
    assert run(*words, "--state-dir", str(state_dir)).exit_code == 2
    assert fake.seen == []


def test_token_list_shows_who_may_what_until_when(run, fake, state_dir) -> None:
    """One row a token; one whose time is over says so."""
    one = {
        "id": "k3",
        "principal": "ci",
        "scopes": ["read", "shift:*"],
        "created_ns": 1_700_000_000_000_000_000,
    }
    tokens = [one | {"expires_ns": None}, one | {"id": "k2", "expires_ns": 1, "automaton": True}]
    fake.on("GET", ADDRESS, {"tokens": tokens})
    listed = run("token", "list", "--state-dir", str(state_dir)).stdout
    first, second = (line for line in listed.splitlines() if " ci " in line)
    assert "read, shift:*" in first
    assert "never" in first
    assert "valid" in first
    assert "expired" in second
    assert "(automaton)" in second
    as_json = run("token", "list", "--json", "--state-dir", str(state_dir))
    assert json.loads(as_json.stdout) == {"tokens": tokens}
    fake.on("GET", ADDRESS, {"tokens": []})
    assert "token new" in run("token", "list", "--state-dir", str(state_dir)).stdout


def test_token_revoke(run, fake, state_dir) -> None:
    """By its id, with a reason; a name that is a path reaches nothing."""
    fake.on("DELETE", f"{ADDRESS}/k3", {"id": "k3"})
    at = ("--reason", "left", "--state-dir", str(state_dir))
    result = run("token", "revoke", "k3", *at)
    assert result.exit_code == 0, result.stderr
    assert fake.seen[-1].body == {"reason": "left"}
    assert "k3 is revoked" in result.stdout
    assert run("token", "revoke", "../models", *at).exit_code == 2
    fake.on("DELETE", f"{ADDRESS}/k3", {"id": "k3"}, 202)
    assert run("token", "revoke", "k3", *at).exit_code == 1
