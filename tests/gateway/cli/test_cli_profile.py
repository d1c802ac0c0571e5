"""`tidegate model profile`: what a version's reference held, for people and for programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli import command

FLIGHTS = Path(__file__).parents[3] / "examples" / "models"


def run(*args: str) -> Result:
    """Call `tidegate model profile ARGS...`."""
    return CliRunner().invoke(command, ["model", "profile", *args])


def test_the_example_in_a_table() -> None:
    """Range, missing values, categories and policy by feature; the newest version where none is named."""
    shown = run("flights", "--models", str(FLIGHTS))
    assert shown.exit_code == 0, shown.output
    assert "input X of flights version 2: 2000 rows of reference" in shown.stdout
    rows = {line.split()[0]: line.split() for line in shown.stdout.splitlines() if line.strip()}
    assert rows["pressure"][1:4] == ["997.9", "1038", "yes"]
    assert rows["temp"][3] == "never"
    assert rows["origin"][4:] == ["0,", "1,", "2", "pass"]
    assert "105 in all" not in shown.stdout
    assert "in all" in shown.stdout
    assert "requests are not held against it" in shown.stdout


def test_the_example_as_json(tmp_path: Path) -> None:
    """Policies as they hold by feature."""
    shutil.copytree(FLIGHTS / "flights", tmp_path / "flights")
    bundle = tmp_path / "flights" / "1" / "bundle.toml"
    policy = '[inputs.X]\npolicy = "flag"\nrange_slack = 0.5\npolicies = { temp = "reject" }\n'
    bundle.write_text(bundle.read_text().replace("[inputs.X]\n", policy))
    found = json.loads(run("flights", "1", "--models", str(tmp_path), "--json").stdout)
    assert (found["model"], found["version"]) == ("flights", "1")
    (one,) = found["inputs"]
    assert (one["name"], one["rows"], one["range_slack"]) == ("X", 2000, 0.5)
    features = {feature["name"]: feature for feature in one["features"]}
    assert features["origin"] == {
        "name": "origin", "min": 0, "max": 2, "has_missing": False, "categories": [0, 1, 2], "policy": "flag",
    }  # fmt: skip
    assert (features["temp"]["policy"], features["temp"]["categories"]) == ("reject", None)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("nobody",), "no model nobody"),
        (("flights", "9"), "no version 9"),
        (("quickstart", "1"), "has no reference"),
    ],
)
def test_what_cannot_be_shown(args: tuple[str, ...], says: str) -> None:
    """One line, exit 2."""
    shown = run(*args, "--models", str(FLIGHTS))
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert says in shown.stderr
    assert shown.stderr.count("\n") == 1
