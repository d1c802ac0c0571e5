"""Models that come, fail and are mended while the gateway serves."""

from __future__ import annotations

import time
from pathlib import Path

from bench.serving import Gateway
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
        deadline = time.monotonic() + 15
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
