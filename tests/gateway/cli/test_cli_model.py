"""`tidegate model` against a fake admin listener."""

from __future__ import annotations

import json

MODELS = {
    "models": [
        {
            "name": "flights",
            "versions": [
                {"version": "1", "state": "ready", "weight_bp": 10000},
                {"version": "2", "state": "failed", "reason": "not an ONNX file"},
            ],
        }
    ],
    "problems": ["flights/x: not a version"],
}


def test_list_and_show(run, fake, state_dir) -> None:
    """One row a version with its state and why it failed."""
    fake.on("GET", "/admin/v1/models", MODELS)
    fake.on("GET", "/admin/v1/models/flights", MODELS["models"][0])
    for args in (("list",), ("show", "flights")):
        result = run("model", *args, "--state-dir", str(state_dir))
        assert result.exit_code == 0, result.stderr
        assert "not an ONNX file" in result.stdout
        assert "100%" in result.stdout
    listed = run("model", "list", "--json", "--state-dir", str(state_dir))
    assert json.loads(listed.stdout) == MODELS


def test_empty_repository_says_what_to_do(run, fake, state_dir) -> None:
    """No models: where to put one."""
    fake.on("GET", "/admin/v1/models", {"models": []})
    assert "model.onnx" in run("model", "list", "--state-dir", str(state_dir)).stdout


def test_load_unload_refresh(run, fake, state_dir) -> None:
    """Each posts to its address with a reason; a version is optional."""
    fake.on("POST", "/admin/v1/models/flights/load", {"state": "ready"})
    fake.on(
        "POST",
        "/admin/v1/models/flights/unload",
        {"error": "in use", "code": "state_conflict"},
        409,
    )
    fake.on("POST", "/admin/v1/models/refresh", {"found": 2})
    at = ("--state-dir", str(state_dir))
    loaded = run("model", "load", "flights", "2", "--reason", "r", *at)
    assert loaded.exit_code == 0
    assert fake.seen[-1].body == {"version": "2", "reason": "r"}
    unloaded = run("model", "unload", "flights", "1", *at)
    assert unloaded.exit_code == 1
    assert "in use" in unloaded.stderr
    refreshed = run("model", "refresh", *at)
    assert refreshed.exit_code == 0
    assert "found 2" in refreshed.stdout
