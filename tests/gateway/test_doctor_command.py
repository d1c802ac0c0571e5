"""`tidegate doctor` as a person runs it."""

from __future__ import annotations

import json

from click.testing import CliRunner

from gateway.cli.doctor import command


def test_the_table_and_its_json() -> None:
    """Both are printed, with every package that serving needs."""
    plain = CliRunner().invoke(command, [])
    assert plain.exit_code in (0, 1)
    assert "onnxruntime" in plain.stdout
    found = json.loads(CliRunner().invoke(command, ["--json"]).stdout)
    assert {"python", "numpy", "shared memory"} <= {check["name"] for check in found}
