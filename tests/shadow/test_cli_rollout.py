"""`tidegate rollout power`: a table for people, JSON for programs, mistakes in one line."""

from __future__ import annotations

import json

import click.testing
import pytest

from gateway.cli import command
from shadow.cli.rollout import duration, parse_rate, parse_share

USUAL = ("--rate", "100/s", "--weight", "10%", "--base", "0.5%")


def power(*args: str) -> click.testing.Result:
    """Run the command in this process."""
    return click.testing.CliRunner().invoke(command, ["rollout", "power", *args], prog_name="tidegate")


def test_the_table_says_what_is_found_and_when() -> None:
    """One line for each fault, with requests and time."""
    result = power(*USUAL)
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if "bad 2 times as often" in line)
    assert line.split()[-2:] == ["9.5", "min"]
    assert "scores shifted 0.5 sd beyond the tolerance" in result.stdout
    assert "at most 1.1% of rollouts" in result.stdout


def test_json_holds_the_stage_and_its_findings() -> None:
    """The same numbers for programs, with the settings they were worked out from."""
    document = json.loads(power(*USUAL, "--kind", "wrong", "--json").stdout)
    assert document["stage"]["weight_bp"] == 1_000
    assert document["stage"]["omega"] == 0.25
    assert {finding["kind"] for finding in document["findings"]} == {"ratio", "rate", "shift"}
    assert document["findings"][1]["minutes"] == pytest.approx(9.5, rel=0.1)


def test_never_is_said_as_never() -> None:
    """A margin of 100% allows a canary that is 1.5 times as bad."""
    result = power(*USUAL, "--margin", "100%")
    line = next(line for line in result.stdout.splitlines() if "bad 1.5 times as often" in line)
    assert line.split()[-1] == "never"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--rate", "fast", "--weight", "10%", "--base", "1%"), "--rate 'fast'"),
        (("--rate", "0/s", "--weight", "10%", "--base", "1%"), "--rate '0/s'"),
        (("--rate", "1/s", "--weight", "100%", "--base", "1%"), "--weight 100%"),
        (("--rate", "1/s", "--weight", "10%", "--base", "200%"), "--base '200%'"),
        (("--rate", "1/s", "--weight", "10%", "--base", "1%", "--alpha", "0"), "--alpha 0"),
        (("--rate", "1/s", "--weight", "10%"), "--base"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(args, said) -> None:
    """Exit 2, nothing on stdout, the option and what was found on stderr."""
    result = power(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_units_of_rates_shares_and_time() -> None:
    """Per second, minute and hour; percentages and shares; seconds to days."""
    assert [parse_rate(text) for text in ("100/s", "6000/min", "3600/h", "2.5")] == [100, 100, 1, 2.5]
    assert [parse_share("--base", text) for text in ("0.5%", "0.005", "0")] == [0.005, 0.005, 0]
    assert [duration(m) for m in (0.2, 8.31, 150, 17_280)] == ["12 s", "8.3 min", "2.5 h", "12 d"]
