"""Changes that are refused, over the real listener: what status, what is said, and that nothing has changed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.serving import Gateway, call
from tests.e2e.splits import ROUTE, canary_bp, route, serving_two, split, variants, within
from tests.kafka.authority import Authority, OpensslAbsent

ROOT = Path(__file__).parents[2]
MORE = {"weights_bp": {"canary": 2_000}, "reason": "more"}
STANDS = 2
"""The revision that all of them find."""


class Case(NamedTuple):
    """A change and its refusal. `says`: parts of the sentence; `token`: whose."""

    status: int
    code: str
    says: tuple[str, ...]
    method: str = "POST"
    path: str = f"{ROUTE}/shift"
    body: dict[str, Any] = MORE
    revision: int | None = STANDS
    token: str | None = "admin"  # noqa: S105


def to_version(version: str) -> dict[str, Any]:
    """A route whose canary is another version."""
    return {"variants": variants(500, canary=version), "reason": "try it"}


SHADOW = {"name": "next", "version": "9", "role": "shadow", "sample_bp": 10_000}
CASES = {
    "stale revision": Case(
        412,
        "revision_conflict",
        ("is at revision 2, you sent 1: changed by admin (two versions) at 2",),
        revision=1,
    ),
    "no If-Match": Case(428, "precondition_required", ("If-Match",), revision=None),
    "unready version": Case(409, "state_conflict", ("version 3", "failed"), "PUT", ROUTE, to_version("3")),
    "unknown version": Case(
        409,
        "state_conflict",
        ("has no version 9 (the repository has 1, 2, 3)", "`tidegate model refresh`"),
        "PUT",
        ROUTE,
        to_version("9"),
    ),
    "unknown shadow": Case(
        409,
        "state_conflict",
        ("has no version 9",),
        "PUT",
        ROUTE,
        {"variants": [*variants(1_000), SHADOW], "reason": "see it"},
    ),
    "wrong scope": Case(403, "forbidden", ("shift:linear", "read"), token="reader"),  # noqa: S106
    "no token": Case(401, "unauthorized", ("token",), token=None),
    "a token that is none": Case(401, "unauthorized", ("token",), token="tg_none"),  # noqa: S106
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A tenth on version 1; version 3 is there and no model."""
    base = tmp_path_factory.mktemp("refused")
    with serving_two(base, ("sidecar.enabled=false",), workers=1) as serving:
        assert split(serving, variants(1_000)).content["revision"] == STANDS
        broken = serving.models / "linear" / "3"
        broken.mkdir()
        (broken / "model.onnx").write_bytes(b"no graph")
        why = {"reason": "a test"}
        assert serving.admin("POST", "models/refresh", why).status == 200
        within(lambda: serving.admin("POST", "models/linear/load", {"version": "3", **why}).status < 300)
        within(lambda: states(serving).get("3") == "failed")
        yield serving


@pytest.fixture(scope="module")
def tokens(gateway: Gateway) -> dict[str, str]:
    """By name: the first start's, and one that may read."""
    body = {"principal": "reader", "scopes": ["read"], "reason": "a test"}
    made = gateway.admin("POST", "tokens", body)
    assert made.status == 201, made
    return {
        "admin": (gateway.state_dir / "admin.token").read_text().strip(),
        "reader": made.content["token"],
    }


def states(gateway: Gateway) -> dict[str, str]:
    """Of the model's versions."""
    found = gateway.admin("GET", "models/linear").content["versions"]
    return {version["version"]: version["state"] for version in found}


def seen(gateway: Gateway) -> tuple[Any, Any]:
    """The route and what its history has."""
    return route(gateway), gateway.admin("GET", f"{ROUTE}/history?limit=100").content["entries"]


@pytest.mark.parametrize("name", CASES)
def test_a_refused_change_changes_nothing(gateway: Gateway, tokens: dict[str, str], name: str) -> None:
    """Status and code by what is wrong, in words that name it; route and history stay as they were."""
    case = CASES[name]
    before = seen(gateway)
    headers = {} if case.token is None else {"authorization": f"Bearer {tokens.get(case.token, case.token)}"}
    if case.revision is not None:
        headers["if-match"] = f'"{case.revision}"'
    reply = call(gateway.admin_url, case.method, f"/admin/v1/{case.path}", case.body, headers)
    assert (reply.status, reply.content["code"]) == (case.status, case.code), reply
    assert [part for part in case.says if part not in reply.content["error"]] == [], reply
    if case.status == 412:
        assert (reply.content["revision"], reply.content["changed"]["by"]) == (STANDS, "admin")
    assert seen(gateway) == before


def test_the_same_change_made_right_is_taken(gateway: Gateway, tokens: dict[str, str]) -> None:
    """The revision that stands and a token that may: so it was for its faults that each was refused."""
    headers = {"authorization": f"Bearer {tokens['admin']}", "if-match": f'"{route(gateway)["revision"]}"'}
    reply = call(gateway.admin_url, "POST", f"/admin/v1/{ROUTE}/shift", MORE, headers)
    assert reply.status == 200, reply
    assert canary_bp(route(gateway)) == 2_000


def test_an_admin_listener_that_others_reach_needs_tls_and_a_token(tmp_path: Path) -> None:
    """`tidegate serve` ends with 2 before anything runs, and one line that names the setting; with TLS it lacks a
    token still."""
    (tmp_path / "models").mkdir()
    bare = served(tmp_path, "admin.host=0.0.0.0")
    assert bare.returncode == 2
    (line,) = bare.stderr.splitlines()
    assert "admin.host is '0.0.0.0'" in line
    assert "admin.tls.cert and admin.tls.key" in line
    try:
        cert, key = Authority(tmp_path).sign("gateway", "DNS:localhost")
    except OpensslAbsent as exc:
        pytest.skip(str(exc))
    key.chmod(0o600)
    without = served(tmp_path, "admin.host=0.0.0.0", f"admin.tls.cert={cert}", f"admin.tls.key={key}")
    assert without.returncode == 2
    (line,) = without.stderr.splitlines()
    assert "admin.host is '0.0.0.0'" in line
    assert "`tidegate token new`" in line
    assert not (tmp_path / "state" / "endpoints.json").exists()


def served(base: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """`tidegate serve`, which must end by itself."""
    options = [word for one in settings for word in ("--set", one)]
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", "serve", str(base / "models"), "--port", "0", "--admin-port", "0",
         "--state-dir", str(base / "state"), *options],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
