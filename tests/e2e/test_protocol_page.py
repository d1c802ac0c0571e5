"""docs/protocol.md: each of its curl lines, run as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.serving import Gateway

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^(.*\bcurl .*?)\s+# (\d{3})\b(.*)$", re.MULTILINE)


def test_every_curl_line_gets_its_status(tmp_path: Path) -> None:
    """In the page's order, against the example model; a text that stands behind an error's status is its."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    lines = LINE.findall((ROOT / "docs" / "protocol.md").read_text())
    assert len(lines) > 30
    shutil.copytree(ROOT / "examples" / "models" / "quickstart", tmp_path / "models" / "quickstart")
    gateway = Gateway(tmp_path / "models", tmp_path / "state", settings=("data.model_control=true",)).start()
    wrong = []
    try:
        for command, status, said in lines:
            command = command.replace("http://127.0.0.1:8080", gateway.data_url)
            command = command.replace("/tmp/reply", shlex.quote(str(tmp_path / "reply")))
            command = command.replace("curl ", "curl --silent --show-error --write-out '\\n%{http_code}' ", 1)
            done = subprocess.run(
                ["bash", "-c", command], capture_output=True, text=True, check=True, timeout=30
            )
            body, _, got = done.stdout.rpartition("\n")
            told = said.strip() if status in {"400", "404"} else ""
            if got != status or told not in body:
                wrong.append((command, got, body[:300]))
    finally:
        gateway.stop()
    assert wrong == []
