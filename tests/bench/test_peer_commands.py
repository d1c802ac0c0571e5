"""What `bench peers` refuses at once, how it ends, and that what was measured is not lost on the way."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from bench import plot, report, wrk
from bench.cli_peers import main
from bench.peers import calibration, page, shortage
from bench.peers import run as runs
from bench.peers.figures import About, Chosen, Closed, Failed, Found, How, Measured, Pair, Round
from bench.peers.figures import Result as Ran
from bench.peers.peer import Cell, Setting
from bench.peers.run import Wanted

CELL = Cell("mlp", "json", 1, False)
OTHER = Cell("trees", "json", 8, True)
FAILED = Failed(peer="triton", what="install", why="no wheel", last_lines="ERROR")
PAGE = "# Page\n<!-- peers: begin -->\n\nold figures\n\n<!-- peers: end -->\nbelow\n"


@pytest.fixture(autouse=True)
def signals() -> object:
    """A command sets handlers; they end with the test."""
    kinds = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(kind) for kind in kinds]
    yield
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)


def side(per_cpu_s: float) -> Measured:
    """One side of a round."""
    closed = Closed(
        requests=int(per_cpu_s), errors=0, cpu_s=1.0, per_second=per_cpu_s, p50_ms=1.0, foreign_cpus=0.0, checked=2
    )  # fmt: skip
    return Measured(closed=closed, memory_bytes=1 << 20)


def ran(times: float, *cells: Cell, failed: tuple[Failed, ...] = (), **given: object) -> Ran:
    """A run of Triton in some cells, in which ours answered so many times as much per processor second."""
    rounds = [
        Round(peer="triton", cell=cell, number=number, ours=side(times * (1000 + number)), theirs=side(1000))
        for cell in cells
        for number in range(3)
    ]
    one = Chosen(setting=Setting(1, False), reason="given")
    about = {
        name: About(title=name, version="1", audit="", forms=["json"], sources=[])
        for name in ("tidegate", "triton")
    }
    pairs = [Pair(peer="triton", model="mlp", theirs=one, ours=one)]
    whole: dict[str, object] = {
        "at": "2026-11-28", "commit": "abc", "command": "tidegate bench peers", "machine": report.machine(),
        "how": How(), "quick": False, "pinned": False, "peers": about,
        "found": Found(rounds=rounds, failed=list(failed), pairs=pairs),
    }  # fmt: skip
    return Ran(**{**whole, **given})  # type: ignore[arg-type]


def ask(*arguments: str) -> Result:
    """A command of `bench peers`."""
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (ran(9, CELL), 0),
        (ran(2, CELL), 1),
        (ran(9, OTHER), 0),
        (ran(9, CELL, failed=(FAILED,)), 2),
        (ran(2, CELL, failed=(FAILED,)), 2),
        (ran(9, failed=(FAILED,)), 3),
        (ran(9), 3),
    ],
    ids=["met", "missed", "no goal", "a hole", "missed, and a hole", "nothing", "none"],
)
def test_a_run_ends_as_the_page_says(
    result: Ran, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 met or without a goal, 1 missed, 2 where anything has no figure, though a goal is missed, too, 3 nothing."""
    monkeypatch.setattr(runs, "run", lambda *_: result)
    done = ask("--resume", str(tmp_path))
    assert done.exit_code == status, done.output
    assert ("without a figure: triton, install" in done.stderr) is (status == 2)


@pytest.mark.parametrize(
    ("ended", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "cut; --resume goes on where it was"),
        (runs.ConfigInvalid("no such thing"), 2, "no such thing"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (runs.Unavailable("tidegate", "does not start"), 3, "does not start"),
        (KeyError("mlp"), 2, "a defect of the bench itself: KeyError('mlp')"),
    ],
)
def test_what_ends_a_run_before_its_end_has_a_status_of_its_own(
    ended: BaseException, status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never 1, which says that a goal was missed; the last line says why."""

    def run(*_: object) -> None:
        raise ended

    monkeypatch.setattr(runs, "run", run)
    done = ask("--resume", str(tmp_path))
    assert (done.exit_code, said in done.stderr.splitlines()[-1]) == (status, True), done.output
    assert ("Traceback" in done.stderr) is isinstance(ended, KeyError)


def test_a_calibration_that_leaves_one_out_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is written all the same; where nothing was, nothing is, and it is 3."""
    found = calibration.fresh()
    found.peers["tidegate"] = {"mlp": Chosen(setting=Setting(2, True), reason="best")}
    out = tmp_path / "settings.json"
    arguments = ("calibrate", "--out", str(out), "--resume", str(tmp_path))
    monkeypatch.setattr(runs, "calibrate", lambda *_: (calibration.fresh(), [FAILED]))
    assert (ask(*arguments).exit_code, out.exists()) == (3, False)
    monkeypatch.setattr(runs, "calibrate", lambda *_: (found, [FAILED]))
    done = ask(*arguments)
    assert (done.exit_code, "triton: install: no wheel" in done.stderr) == (2, True)
    assert calibration.read(out).classes[calibration.machine_class()].get("tidegate", "mlp") is not None
    monkeypatch.setattr(runs, "calibrate", lambda *_: (found, []))
    assert ask(*arguments).exit_code == 0


@pytest.mark.parametrize("command", [(), ("calibrate",)])
@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e9"])
def test_a_load_lasts_longer_than_nothing(command: tuple[str, ...], seconds: str, tmp_path: Path) -> None:
    """0, less, no number and endless are refused before anything starts."""
    done = ask(*command, "--seconds", seconds, "--resume", str(tmp_path / "run"))
    assert (done.exit_code, "--seconds" in done.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_part_does_not_replace_a_whole_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some peers or models with --write are refused in one line before anything starts; all of them are not a part."""
    started: list[object] = []
    monkeypatch.setattr(runs, "run", lambda *_: started.append(1) or ran(9, CELL))
    monkeypatch.setattr(runs, "write_page", lambda *_: None)
    monkeypatch.setattr(plot, "demand", lambda: None)
    file = tmp_path / "page.md"
    file.write_text(PAGE)
    to = ("--write", str(file), "--resume", str(tmp_path))
    for part in (("--peer", "triton"), ("--model", "mlp"), ("--model", "mlp", "--model", "trees")):
        done = ask("run", *part, *to)
        assert (done.exit_code, " ".join(part) in done.stderr) == (2, True), done.output
        assert len(done.stderr.splitlines()) == 1
    assert (started, file.read_text()) == ([], PAGE)
    every = [f"--peer={peer.name}" for peer in runs.PEERS[1:]]
    assert (
        ask("run", *every, "--model", "mlp", "--model", "trees", "--model", "squeezenet", *to).exit_code == 0
    )
    assert ask("run", "--peer", "triton", "--resume", str(tmp_path)).exit_code == 0


def test_places_are_asked_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a directory that is not there, and a directory for a file: one line, and status 2."""
    monkeypatch.setattr(runs, "run", lambda *_: pytest.fail("it was started"))
    monkeypatch.setattr(runs, "calibrate", lambda *_: pytest.fail("it was started"))
    absent = str(tmp_path / "absent" / "file")
    for arguments, said in (
        (("run", "--out", absent), "there is no directory"),
        (("run", "--out", str(tmp_path)), "is a directory"),
        (("run", "--write", absent), "there is no directory"),
        (("run", "--write", str(tmp_path / "none.md")), "No such file"),
        (("calibrate", "--out", absent), "there is no directory"),
    ):
        done = ask(*arguments, "--resume", str(tmp_path))
        assert (done.exit_code, said in done.stderr) == (2, True), done.output
        assert len(done.stderr.splitlines()) == 1


def test_a_full_disk_leaves_page_and_file_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is printed all the same, and the status is 2."""
    file, out = tmp_path / "page.md", tmp_path / "out.json"
    file.write_text(PAGE)
    out.write_text("old")
    monkeypatch.setattr(runs, "run", lambda *_: ran(9, CELL))
    monkeypatch.setattr(plot, "demand", lambda: None)
    monkeypatch.setattr(page, "draw", lambda _, drawn: drawn.write_text("<svg/>"))
    whole = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.parent != tmp_path:
            return whole(path, content)
        with path.open("wb") as half:
            half.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        for option in (("--write", str(file)), ("--out", str(out))):
            done = ask("run", *option, "--resume", str(tmp_path / "run"))
            assert (done.exit_code, "No space left" in done.stderr) == (2, True)
            assert "### Where a peer is ahead" in done.stdout
    assert (file.read_text(), out.read_text()) == (PAGE, "old")
    assert {path.name for path in tmp_path.iterdir()} == {"page.md", "out.json"}
    assert ask("run", "--write", str(file), "--out", str(out), "--resume", str(tmp_path)).exit_code == 0
    assert "### Where a peer is ahead" in file.read_text()
    assert runs.read_result(out) == ran(9, CELL)


def test_a_disk_that_is_nearly_full_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where temporary files go, how much is left, and what to do."""
    monkeypatch.setattr(runs, "demand_processors", lambda **_: None)
    monkeypatch.setattr(wrk, "demand", lambda **_: None)
    monkeypatch.setattr(shortage, "ROOM_BYTES", 1)
    runs.demand(Wanted())
    monkeypatch.setattr(shortage, "ROOM_BYTES", 1 << 62)
    with pytest.raises(runs.ConfigInvalid, match=r"GiB left.*by TMPDIR"):
        runs.demand(Wanted())


def test_a_command_asks_for_the_same_figures() -> None:
    """Processors, too, where they are others than usual; no place on this machine."""
    usual = Wanted(peers=("triton",), settings="/some/where.json")
    assert usual.command == "tidegate bench peers --peer triton --seconds 1.5 --settings FILE"
    other = Wanted(how=How(seconds=2, server_cpu=2, generator_cpu=3))
    assert other.command == "tidegate bench peers --seconds 2 --server-cpu 2 --generator-cpu 3"


def write(file: Path, result: Ran) -> str:
    """A run's JSON."""
    file.write_text(report.to_json(result))
    return str(file)


def test_runs_agree_where_intervals_overlap(tmp_path: Path) -> None:
    """Each cell in words; 0 where all do, 1 where one does not, 3 where they have none in common."""
    first = write(tmp_path / "a", ran(9, CELL))
    done = ask("agree", first, write(tmp_path / "b", ran(9, CELL)))
    assert (done.exit_code, done.output.count("\n")) == (0, 1)
    assert done.output.startswith("triton, mlp, json, 1 row, audit off: ")
    assert done.output.endswith(": overlap\n")
    done = ask("agree", first, write(tmp_path / "c", ran(5, CELL)))
    assert (done.exit_code, done.output.endswith(": do not overlap\n")) == (1, True)
    assert ask("agree", first, write(tmp_path / "d", ran(9, OTHER))).exit_code == 3


def test_cells_of_one_run_alone_are_named(tmp_path: Path) -> None:
    """2, whether the others overlap or not; with --common that is as it is meant."""
    less, more = write(tmp_path / "a", ran(9, CELL)), write(tmp_path / "b", ran(9, CELL, OTHER))
    far = write(tmp_path / "c", ran(5, CELL))
    name = "triton, trees, json, 8 rows, audit on"
    for arguments, status, said in (
        ((less, more), 2, f"{name}: in the second run alone"),
        ((more, less), 2, f"{name}: in the first run alone"),
        ((far, more), 2, f"{name}: in the second run alone"),
        ((less, more, "--common"), 0, f"{name}: in the second run alone"),
        ((far, more, "--common"), 1, f"{name}: in the second run alone"),
    ):
        done = ask("agree", *arguments)
        assert (done.exit_code, said in done.stdout) == (status, True), done.output


def test_a_pinned_run_is_not_compared_with_one_that_is_not(tmp_path: Path) -> None:
    """Their ratios are of different things, whichever comes first."""
    free, pinned = write(tmp_path / "a", ran(9, CELL)), write(tmp_path / "b", ran(9, CELL, pinned=True))
    for arguments, which in (((free, pinned), "second"), ((pinned, free), "first")):
        done = ask("agree", *arguments)
        assert (done.exit_code, f"in the {which} run alone (--ours-as-theirs)" in done.stderr) == (2, True)
    assert ask("agree", pinned, pinned).exit_code == 0


def test_what_was_not_the_same_in_two_runs_is_said(tmp_path: Path) -> None:
    """Machine, commit, loads, versions and settings of either side; none of it changes the status."""
    first = ran(9, CELL)
    other = Chosen(setting=Setting(4, True, {"api": "sync"}), reason="another")
    peers = {name: msgspec.structs.replace(about, version="2") for name, about in first.peers.items()}
    found = Found(
        rounds=first.found.rounds, pairs=[Pair(peer="triton", model="mlp", theirs=other, ours=other)]
    )
    machine = msgspec.structs.replace(report.machine(), cpu="Z80")
    second = ran(9, CELL, machine=machine, commit="def", how=How(seconds=3), peers=peers, found=found)
    done = ask("agree", write(tmp_path / "a", first), write(tmp_path / "b", second))
    assert done.exit_code == 0
    for said in (
        "commit: abc against def", "Z80, ", "loads, seconds: 1.5 against 3.0", "triton, version: 1 against 2",
        "tidegate, version: 1 against 2",
        "triton, mlp, setting: 1 worker, batching off against 4 workers, batching on, api=sync",
        "triton, mlp, our setting: 1 worker, batching off against 4 workers",
    ):  # fmt: skip
        assert any(line.startswith("not the same: ") and said in line for line in done.output.splitlines()), (
            said
        )


def known(at: str, cpu: str, **peers: str) -> calibration.Calibrated:
    """A calibration with a reason for each peer."""
    found = calibration.fresh()
    found.at, found.machine = at, msgspec.structs.replace(found.machine, cpu=cpu)
    for name, reason in peers.items():
        found.peers[name] = {"mlp": Chosen(setting=Setting(1, False), reason=reason)}
    return found


def test_one_peer_that_is_calibrated_anew_does_not_date_the_others() -> None:
    """It has its own date, and machine where that is another, in its reason; all found anew are of that day."""
    before = known("2026-01-01", "Z80", a="best", b="better")
    seen = runs.merged(
        msgspec.convert(msgspec.to_builtins(before), calibration.Calibrated),
        known("2026-02-02", "Z80", b="good"),
    )
    assert (seen.at, seen.machine.cpu) == ("2026-01-01", "Z80")
    reasons = {name: models["mlp"].reason for name, models in seen.peers.items()}
    assert reasons == {"a": "best", "b": "good (found on 2026-02-02)"}
    seen = runs.merged(seen, known("2026-03-03", "6502", c="fine"))
    assert seen.peers["c"]["mlp"].reason.startswith("fine (found on 2026-03-03, 6502, ")
    assert (seen.at, seen.machine.cpu) == ("2026-01-01", "Z80")
    seen = runs.merged(seen, known("2026-04-04", "6502", a="1", b="2", c="3"))
    assert (seen.at, seen.machine.cpu) == ("2026-04-04", "6502")
    assert [models["mlp"].reason for models in seen.peers.values()] == ["1", "2", "3"]
    assert runs.merged(None, seen) == seen


def test_the_committed_settings_are_read_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every product and model that it has, without trying any."""
    (name, committed), *_ = calibration.read(calibration.COMMITTED).classes.items()
    assert committed.peers
    monkeypatch.setattr(calibration, "machine_class", lambda: name)
    monkeypatch.setattr(calibration, "calibrate", lambda *_: pytest.fail("it was looked for"))
    settings = runs.Known(Wanted(), tmp_path, tmp_path, lambda _: None)
    for peer in runs.PEERS:
        for model, chosen in committed.peers[peer.name].items():
            assert settings.get(peer, model) == chosen
