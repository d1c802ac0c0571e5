"""`tidegate bench load` against a running gateway: what came back, checked, in each form of output."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench.cli import main
from bench.cli_load import unwind_by_signals
from bench.models import write_mlp
from bench.serving import Gateway


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[Gateway, Path]]:
    """A gateway with the MLP, and its model file."""
    place = tmp_path_factory.mktemp("load")
    model_file = write_mlp(place / "models")
    with Gateway(place / "models", place / "state") as gateway:
        yield gateway, model_file


def load(served: tuple[Gateway, Path], *arguments: str) -> Result:
    """Run the command for a short while with few requests."""
    gateway, model_file = served
    options = ["--seconds", "0.6", "--distinct", "200", "--check", str(model_file)]
    return CliRunner().invoke(main, ["load", "--url", gateway.data_url, *options, *arguments])


def test_an_open_loop_says_what_came_back(served, tmp_path: Path) -> None:
    """A given rate is offered whatever comes back; 1% is compared with ONNX Runtime; the picture is an SVG."""
    pytest.importorskip("matplotlib")
    done = load(
        served, "--rate", "400", "--json", "--plot", str(tmp_path / "p.svg"), "--binary", "--rows", "4"
    )
    seen = json.loads(done.stdout)
    assert seen["requests"] == seen["ok"] == pytest.approx(240, abs=70)
    assert seen["checked"] == -(-seen["requests"] // 97)
    assert 0 < seen["latency_ms"]["p50"] <= seen["latency_ms"]["p99"] <= seen["latency_ms"]["max"]
    assert done.exit_code == (1 if seen["generator_limited"] else 0)
    assert "<svg" in (tmp_path / "p.svg").read_text()


def test_a_closed_loop_and_a_table(served) -> None:
    """Without a rate each connection sends when it has its answer; the table goes into a page as it is."""
    done = load(served, "--connections", "4", "--markdown", "--varying-heads")
    assert done.exit_code == 0, done.output
    assert "| not 2xx | 0 | 0 | **met** |" in done.stdout
    assert "all equal" in done.stdout


def test_errors_are_counted_by_status_and_code(served, tmp_path: Path) -> None:
    """Bodies of a file that are refused show as what they are, and the command says no."""
    (tmp_path / "bodies").write_text(
        '{"inputs":[{"name":"X","datatype":"FP32","shape":[1,2],"data":[1,2]}]}\n'
    )
    done = load(served, "--rate", "100", "--json", "--bodies", str(tmp_path / "bodies"))
    seen = json.loads(done.stdout)
    assert done.exit_code == 1
    assert seen["errors"] == {"400 invalid_request": seen["requests"]}
    assert seen["ok"] == seen["checked"] == 0


def test_what_is_missing_is_said(served, monkeypatch) -> None:
    """An unknown model, nothing that listens, and no matplotlib each end with a sentence."""
    unknown = load(served, "--model", "none")
    assert (unknown.exit_code, "model none" in unknown.stderr) == (2, True)
    nobody = CliRunner().invoke(main, ["load", "--url", "http://127.0.0.1:1"])
    assert nobody.exit_code == 3
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    plain = load(served, "--plot", "x.svg")
    assert (plain.exit_code, "tidegate[plots]" in plain.stderr) == (2, True)


def test_what_was_ignored_from_the_start_stays_ignored() -> None:
    """A bench that was started with nohup outlives its terminal; what was not ignored unwinds as Ctrl-C does."""
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        unwind_by_signals()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
