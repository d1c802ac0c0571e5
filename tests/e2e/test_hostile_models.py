"""Hostile models beside a good one: the good one answers, by the same process, whatever else is put there."""

from __future__ import annotations

import time
from pathlib import Path

from bench.serving import Gateway, call
from tests.e2e.onnx_models import write_linear
from tests.loaders import hostile

NAMES = ("functions-2^30", "constant-4TiB", "hard-link", "traversal", "random", "recursion", "huge-dims")


def test_hostile_models_harm_no_neighbour(tmp_path: Path) -> None:
    """Each is refused with its reason, none ends the worker, and the good model answers all the while."""
    models = tmp_path / "models"
    write_linear(models)
    gateway = Gateway(models, tmp_path / "state").start()

    try:
        before = gateway.pids("worker")
        named = {name.replace("^", "-"): name for name in NAMES}
        for model, name in named.items():
            hostile.REFUSED[name][0](models, model)
        hostile.HARMLESS["endless-loop"](models, "endless")
        assert gateway.admin("POST", "models/refresh", {"reason": "new models"}).status == 200
        waiting, answered = {*named, "endless"}, 0
        # A trial gives way to whoever else wants the processor.
        deadline = time.monotonic() + 180
        while waiting:
            assert time.monotonic() < deadline, waiting
            assert call(gateway.data_url, "GET", "/v2/models/linear/ready").status == 200
            answered += 1
            for model in sorted(waiting):
                version = gateway.admin("GET", f"models/{model}").content["versions"][0]
                if version["state"] in {"ready", "failed"}:
                    waiting.discard(model)
                    if model == "endless":
                        assert version["state"] == "ready"
                    else:
                        assert hostile.REFUSED[named[model]][1] in version["reason"]
            time.sleep(0.05)
        assert answered > 1
        assert gateway.pids("worker") == before
        assert gateway.stop() == 0
    finally:
        gateway.kill9_all()
