"""Models that come, fail and are mended while the gateway serves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.serving import Gateway, Reply, call
from tests.e2e.onnx_models import write_linear


def test_a_failed_version_is_tried_again_when_asked(tmp_path: Path) -> None:
    """A broken file fails its version alone and says why; mended, `load` makes it ready in every worker."""
    models = tmp_path / "models"
    write_linear(models)
    gateway = Gateway(models, tmp_path / "state", workers=2).start()

    def state() -> tuple[str, str | None]:
        content = gateway.admin("GET", "models/linear").content
        version = next(v for v in content["versions"] if v["version"] == "2")
        return version["state"], version["reason"]

    def wait_for(wanted: str) -> str | None:
        deadline = time.monotonic() + 60
        while (found := state())[0] != wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found[1]

    try:
        broken = models / "linear" / "2" / "model.onnx"
        broken.parent.mkdir()
        broken.write_bytes(b"not a model")
        assert gateway.admin("POST", "models/refresh", {"reason": "new version"}).status == 200
        reason = wait_for("failed")
        assert reason
        assert str(tmp_path) not in reason
        broken.write_bytes((models / "linear" / "1" / "model.onnx").read_bytes())
        asked = gateway.admin("POST", "models/linear/load", {"version": "2", "reason": "mended"})
        assert asked.status == 200
        wait_for("ready")
        assert gateway.stop() == 0
    finally:
        gateway.kill9_all()


def test_models_come_and_go_over_the_data_listener(tmp_path: Path) -> None:
    """With two workers: after a load each answers, after an unload none does, a failure is told with its reason."""
    models = tmp_path / "models"
    write_linear(models)
    gateway = Gateway(models, tmp_path / "state", workers=2, settings=("data.model_control=true",)).start()

    def change(model: str, kind: str) -> Reply:
        return call(gateway.data_url, "POST", f"/v2/repository/models/{model}/{kind}")

    def statuses() -> list[int]:
        # Connections of their own: any worker may take each.
        body = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
        return [call(gateway.data_url, "POST", "/v2/models/late/infer", body).status for _ in range(30)]

    def answered() -> Any:
        (counted,) = call(gateway.data_url, "GET", "/v2/models/late/stats").content["model_stats"]
        return counted["inference_stats"]["success"]["count"]

    def state_of(model: str) -> list[str]:
        listed = call(gateway.data_url, "POST", "/v2/repository/index").content
        return [version["state"] for version in listed if version["name"] == model]

    try:
        write_linear(models, "late")
        assert change("late", "load").content == {"name": "late", "load": True}
        assert statuses() == [200] * 30
        assert state_of("late") == ["READY"]
        assert change("late", "unload").content == {"name": "late", "unload": True}
        assert statuses() == [404] * 30
        assert state_of("late") == ["UNAVAILABLE"]
        assert change("late", "load").status == 200
        assert statuses() == [200] * 30
        # Each worker adds up what it counted with its next tick.
        deadline = time.monotonic() + 30
        while answered() < 30:
            assert time.monotonic() < deadline, answered()
            time.sleep(0.02)
        broken = models / "broken" / "1" / "model.onnx"
        broken.parent.mkdir(parents=True)
        broken.write_bytes(b"not a model")
        refused = change("broken", "load")
        assert (refused.status, refused.content["code"]) == (422, "load_failed")
        assert "'broken' version 1" in refused.content["error"]
        assert str(tmp_path) not in refused.content["error"]
        broken.write_bytes((models / "linear" / "1" / "model.onnx").read_bytes())
        assert change("broken", "load").status == 200
        assert gateway.stop() == 0
    finally:
        gateway.kill9_all()
