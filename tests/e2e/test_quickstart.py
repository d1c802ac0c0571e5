"""The story that the README tells, with real processes and the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.serving import Gateway
from tests.e2e.onnx_models import write_linear

ROOT = Path(__file__).parents[2]
SETTLES_WITHIN_S = 60
"""A version is found, loaded and ready in every worker."""


def tidegate(gateway: Gateway, *args: str) -> subprocess.CompletedProcess[str]:
    """`tidegate ARGS...` against that gateway's state directory."""
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *args, "--state-dir", str(gateway.state_dir)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )


def answer(gateway: Gateway, *args: str) -> Any:
    """The JSON that a successful command prints."""
    done = tidegate(gateway, *args, "--json")
    assert done.returncode == 0, f"{args}: {done.stderr}{gateway.said()}"
    return json.loads(done.stdout)


def until(what: str, attempt: Callable[[], bool]) -> None:
    """Repeat until it holds."""
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while not attempt():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def ask_mine(gateway: Gateway) -> Any:
    """One prediction of the model `mine`."""
    return answer(gateway, "predict", "mine", "--input", "X=[[1,2,3,4]]")


def versions_over(gateway: Gateway, requests: int) -> Counter[str]:
    """Which versions of `mine` answer, over plain HTTP so that many requests are cheap."""
    from bench.serving import call

    tensor = {"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    replies = (
        call(gateway.data_url, "POST", "/v2/models/mine/infer", {"inputs": [tensor]}) for _ in range(requests)
    )
    return Counter(reply.content["model_version"] for reply in replies)


def test_quickstart(gateway_process: Gateway) -> None:
    """Serve, predict, add a model while running, split, find the record, take the weight back."""
    gateway = gateway_process

    listed = tidegate(gateway, "model", "list")
    assert listed.returncode == 0, listed.stderr
    example = sorted(path.name for path in gateway.models.iterdir() if path.is_dir())[0]
    assert example in listed.stdout
    told = tidegate(gateway, "predict", example)
    assert told.returncode == 2
    assert "--input" in told.stderr

    write_linear(gateway.models, "mine", "1", scale=0.25)
    answer(gateway, "model", "refresh")
    until(
        "mine answers",
        lambda: tidegate(gateway, "predict", "mine", "--input", "X=[[1,2,3,4]]").returncode == 0,
    )
    assert ask_mine(gateway)["model_version"] == "1"

    write_linear(gateway.models, "mine", "2", scale=0.5)
    answer(gateway, "model", "refresh")
    shift = ("route", "shift", "mine", "2=25%", "--reason", "try version 2")
    until("version 2 takes weight", lambda: tidegate(gateway, *shift).returncode == 0)
    shown = answer(gateway, "route", "show", "mine")
    assert {v["version"]: v["weight_bp"] for v in shown["variants"]} == {"1": 7500, "2": 2500}
    # 200 draws at 25%: all the same with probability below 1e-24.
    assert set(versions_over(gateway, 200)) == {"1", "2"}

    reply = ask_mine(gateway)
    record = answer(gateway, "audit", "get", reply["prediction_id"])
    assert record["id"] == reply["prediction_id"]
    assert record["model"]["version"] == reply["model_version"]
    assert record["route"]["revision"] == shown["revision"]
    assert tidegate(gateway, "audit", "tail", "-n", "5").returncode == 0

    back = tidegate(gateway, "route", "shift", "mine", "2=0%", "--reason", "enough seen")
    assert back.returncode == 0, back.stderr
    assert set(versions_over(gateway, 50)) == {"1"}
    history = tidegate(gateway, "route", "history", "mine")
    assert "try version 2" in history.stdout
    assert "enough seen" in history.stdout
    verified = tidegate(gateway, "audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
