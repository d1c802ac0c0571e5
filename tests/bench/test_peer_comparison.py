"""The whole way of `bench peers` with products that nobody makes: settings, rounds, going on, failing, the page."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from fake_product import Fake, FakeRunning

from bench.cli_peers import main
from bench.peers import calibration, catalog, comparison
from bench.peers import loads as loads_
from bench.peers import run as runs
from bench.peers.asking import WrongAnswer
from bench.peers.figures import Chosen, Closed, Found, How, Measured, Pair
from bench.peers.loads import Fault, blaming
from bench.peers.peer import Cell, Setting, Unavailable
from bench.peers.posting import post
from bench.peers.run import Wanted

pytestmark = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not on this machine")
CELL = Cell("mlp", "json", 1, False)
HOW = How(seconds=1.0, distinct=50)
WANTED = Wanted(
    peers=("fake",),
    models=("mlp",),
    how=HOW,
    quick=True,
    rounds=1,
)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """Ours, a peer that works, one that does not start, one that lies; one cell."""
    made = [Fake("ours"), Fake("fake"), Fake("broken", FAKE_DIES="1"), Fake("liar", FAKE_LIES="1")]
    monkeypatch.setattr(runs, "PEERS", tuple(made))
    monkeypatch.setattr(calibration, "LOADS", 1)
    monkeypatch.setattr(catalog, "HEADLINE", (CELL,))
    monkeypatch.setattr(comparison, "VERSIONED", frozenset(("mlp",)))
    return made


def known(directory: Path, *names: str) -> None:
    """A run's settings, so that nothing needs to be found."""
    found = calibration.fresh()
    for name in names:
        found.peers[name] = {"mlp": Chosen(setting=Setting(1, False), reason="given")}
    calibration.write(directory / runs.SETTINGS_FILE, found)


def test_a_run_measures_once_and_goes_on_where_it_was_cut(tmp_path: Path, products: list[Fake]) -> None:
    """Figures of both sides with checked answers, files of the run; asked again, it starts nothing."""
    known(tmp_path, "ours", "fake")
    steps: list[tuple[int, int]] = []
    result = runs.run(WANTED, tmp_path, lambda _: None, lambda done, of: steps.append((done, of)))
    assert result.found.failed == []
    (one,) = result.found.rounds
    for side in (one.ours, one.theirs):
        assert side.closed.requests > 100
        assert side.closed.errors == 0
        assert side.closed.checked >= 2
        assert 0.1 < side.closed.cpu_s < 3
        assert side.open is not None
        assert side.open.requests > 10
        assert side.open.errors == {}
        assert side.open.checked > 0
        assert side.memory_bytes > 10 << 20
    assert one.ours.open is not None
    assert one.theirs.open is not None
    assert one.ours.open.offered_per_second == pytest.approx(one.theirs.open.offered_per_second, rel=0.2)
    assert {start.side for start in result.found.starts} == {"ours", "fake"}
    assert all(start.cold_s > 0 and start.version_s for start in result.found.starts)
    assert result.command == "tidegate bench peers --peer fake --model mlp --seconds 1 --rounds 1 --quick"
    assert steps == [(0, 1), (1, 1)]
    assert runs.read_result(tmp_path / runs.JSON_FILE) == result
    assert "### Where a peer is ahead" in (tmp_path / runs.PAGE_FILE).read_text()
    begun = [product.begun for product in products]
    again = runs.run(WANTED, tmp_path, lambda _: None)
    assert again.found == result.found
    assert [product.begun for product in products] == begun


def test_many_rounds_are_of_more_than_one_start(
    tmp_path: Path, products: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start of both servers has so many rounds and the next one the rest; each has its open loops."""
    known(tmp_path, "ours", "fake")
    monkeypatch.setattr(catalog, "ROUNDS_A_START", 2)
    monkeypatch.setattr(catalog, "HEADLINE_OPENS", 1)
    monkeypatch.setattr(comparison, "VERSIONED", frozenset())
    result = runs.run(Wanted(**{**msgspec.structs.asdict(WANTED), "rounds": 3}), tmp_path, lambda _: None)
    assert [one.number for one in result.found.rounds] == [0, 1, 2]
    assert [one.ours.open is not None for one in result.found.rounds] == [True, False, True]
    # One for the cold start, one for each two rounds.
    assert [product.begun for product in products[:2]] == [3, 3]


def test_a_peer_that_does_not_start_or_lies_is_said_and_the_others_go_on(
    tmp_path: Path, products: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its last lines, or with the first wrong answer; no figure of either."""
    known(tmp_path, "ours", "broken", "liar")
    monkeypatch.setattr(comparison, "START_ROUNDS", 1)
    wanted = Wanted(peers=("broken", "liar"), models=("mlp",), how=HOW, rounds=1)
    monkeypatch.setattr(catalog, "cells", lambda *_, **__: [])
    result = runs.run(wanted, tmp_path, lambda _: None)
    assert result.found.rounds == []
    broken, liar = result.found.failed
    assert "ended with status 7" in broken.why
    assert "frobnicator" in broken.last_lines
    assert "ONNX Runtime says" in liar.why
    assert (broken.side, broken.wrong, liar.side, liar.wrong) == ("broken", False, "liar", True)


def test_a_failure_stands_under_the_side_whose_it_was(
    tmp_path: Path, products: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours that answers wrongly is not the peer's fault, nor is ours that does not start."""
    monkeypatch.setattr(comparison, "START_ROUNDS", 1)
    monkeypatch.setattr(catalog, "cells", lambda *_, **__: [])
    for number, (environ, wrong) in enumerate((({"FAKE_LIES": "1"}, True), ({"FAKE_DIES": "1"}, False))):
        monkeypatch.setattr(runs, "PEERS", (Fake("ours", **environ), Fake("fake")))
        place = tmp_path / str(number)
        place.mkdir()
        known(place, "ours", "fake")
        wanted = Wanted(peers=("fake",), models=("mlp",), how=HOW, rounds=1)
        result = runs.run(wanted, place, lambda _: None)
        (failed,) = result.found.failed
        assert (failed.peer, failed.side, failed.wrong) == ("fake", "ours", wrong)


def test_a_cell_that_a_wrong_answer_ended_stays_so(
    tmp_path: Path, products: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first round is found, the second had a wrong answer, no other start is asked; nor when a run goes on."""
    known(tmp_path, "ours", "fake")
    monkeypatch.setattr(catalog, "ROUNDS_A_START", 2)
    monkeypatch.setattr(comparison.Comparison, "_starts", lambda *_, **__: None)
    numbers: list[int] = []
    side = Measured(
        closed=Closed(requests=9, errors=0, cpu_s=1, per_second=9, p50_ms=1, foreign_cpus=0, checked=2),
        memory_bytes=1 << 20,
    )

    def measured(*given: object, **_: object) -> dict[str, Measured]:
        numbers.append(int(str(given[2])))
        if numbers[-1] == 1:
            raise Fault("fake", "fake: output y is 2, ONNX Runtime says 1", wrong=True)
        return {"ours": side, "fake": side}

    monkeypatch.setattr(comparison, "_round", measured)
    wanted = msgspec.structs.replace(WANTED, rounds=3)
    first = runs.run(wanted, tmp_path, lambda _: None)
    (failed,) = first.found.failed
    assert (failed.side, failed.what, failed.wrong) == ("fake", CELL.text(), True)
    assert (numbers, len(first.found.rounds)) == ([0, 1], 1)
    again = runs.run(wanted, tmp_path, lambda _: None)
    assert (numbers, again.found) == ([0, 1], first.found)


def test_what_a_side_does_is_blamed_on_it_but_not_a_full_disk() -> None:
    """A wrong answer is told from what broke."""
    for exc, wrong in ((WrongAnswer("2, not 1"), True), (ConnectionError("gone"), False)):
        with pytest.raises(Fault) as caught, blaming("fake"):
            raise exc
        assert (caught.value.side, caught.value.wrong) == ("fake", wrong)
    with pytest.raises(OSError, match="No space"), blaming("fake"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_calibration_takes_the_setting_that_answers_most_per_processor_second(
    tmp_path: Path, products: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow one is tried, too, and its figure is in the reason; it is hopeless and gets one load of two."""
    loads: list[float] = []
    whole = loads_.Side.closed
    monkeypatch.setattr(
        loads_.Side, "closed", lambda side, seconds: loads.append(seconds) or whole(side, seconds)
    )
    monkeypatch.setattr(calibration, "LOADS", 2)
    repository = tmp_path / "models"
    catalog.write(repository, "mlp")
    found = calibration.calibrate(products[1], "mlp", repository, HOW, lambda _: None)
    assert found.setting == Setting(1, False)
    slow = next(one for one in found.tried if one.setting.extra)
    assert 0 < slow.per_cpu_s < 340
    assert "environ=FAKE_SLOW" in found.reason
    assert len(loads) == 3


def test_only_those_that_are_named_are_calibrated(
    tmp_path: Path, products: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours by its name like any other; without names all and ours."""
    found = Chosen(setting=Setting(1, False), reason="asked")
    monkeypatch.setattr(calibration, "calibrate", lambda *_: found)
    for number, (names, expected) in enumerate(
        [(("ours",), {"ours"}), (("fake",), {"fake"}), ((), {product.name for product in products})]
    ):
        wanted = Wanted(peers=names, models=("mlp",), how=HOW, calibrate=True)
        seen, failed = runs.calibrate(wanted, tmp_path / str(number), lambda _: None)
        assert (set(seen.peers), failed) == (expected, [])


def test_no_setting_works_is_unavailable(tmp_path: Path, products: list[Fake]) -> None:
    """With the last lines of the last one."""
    with pytest.raises(Unavailable) as caught:
        calibration.calibrate(products[2], "mlp", _models(tmp_path), HOW, lambda _: None)
    assert "frobnicator" in caught.value.last_lines


def test_requests_that_fail_rule_a_setting_out(tmp_path: Path, products: list[Fake]) -> None:
    """503 for everything: it is never up."""
    refusing = Fake("refusing", FAKE_REFUSES="1")
    refusing.choices = (Setting(1, False),)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeRunning, "answers", _any_answer)
        with pytest.raises(Unavailable, match="no setting serves mlp") as caught:
            calibration.calibrate(refusing, "mlp", _models(tmp_path), HOW, lambda _: None)
    assert "requests failed" in caught.value.last_lines


def test_an_open_loop_of_refusals_has_no_latency(tmp_path: Path, products: list[Fake]) -> None:
    """Who refuses is not quick; what others took of the processors meanwhile is known."""
    repository, peer = _models(tmp_path), Fake("refusing", FAKE_REFUSES="1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeRunning, "answers", _any_answer)
        with loads_.started(peer, repository, "mlp", Setting(1, False), HOW, audit=False) as running:
            side = loads_.Side(
                peer,
                running,
                CELL,
                repository,
                tmp_path / "load",
                generator_cpu=HOW.generator_cpu,
                distinct=9,
            )
            seen = side.open(50.0, 1.0)
    assert (seen.p50_ms, seen.p99_ms, seen.p999_ms, seen.timed, seen.slowest_ms) == (None, None, None, 0, [])
    assert sum(seen.errors.values()) == seen.requests > 20
    assert seen.foreign_cpus is not None


def test_ours_is_pinned_to_a_peers_setting(tmp_path: Path, products: list[Fake], monkeypatch) -> None:
    """As many workers, and no batching where theirs has none."""
    known(tmp_path, "ours", "fake")
    seen: list[Pair] = []
    monkeypatch.setattr(comparison.Comparison, "run", lambda _, pairs: seen.extend(pairs) or Found())
    wanted = Wanted(peers=("fake",), models=("mlp",), how=HOW, pinned=True)
    file = tmp_path / runs.SETTINGS_FILE
    found = calibration.read(file).classes[calibration.machine_class()]
    found.peers["fake"]["mlp"] = Chosen(setting=Setting(4, False, {"x": "1"}), reason="")
    calibration.write(file, found)
    runs.run(wanted, tmp_path, lambda _: None)
    assert [pair.ours.setting for pair in seen] == [Setting(4, False)]


def test_settings_that_are_named_come_before_what_the_run_kept(
    tmp_path: Path, products: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a run goes on that has kept others."""
    known(tmp_path, "ours", "fake")
    (tmp_path / "mine").mkdir()
    known(tmp_path / "mine", "fake")
    file = tmp_path / "mine" / runs.SETTINGS_FILE
    found = calibration.read(file).classes[calibration.machine_class()]
    found.peers["fake"]["mlp"] = Chosen(setting=Setting(2, True), reason="named")
    calibration.write(file, found)
    seen: list[Pair] = []
    monkeypatch.setattr(comparison.Comparison, "run", lambda _, pairs: seen.extend(pairs) or Found())
    wanted = Wanted(peers=("fake",), models=("mlp",), how=HOW, settings=str(file))
    runs.run(wanted, tmp_path, lambda _: None)
    assert [(pair.theirs.setting, pair.ours.setting) for pair in seen] == [
        (Setting(2, True), Setting(1, False))
    ]


def test_a_full_disk_is_no_products_fault(
    tmp_path: Path, products: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends, to go on later: no setting is passed over for it, and no cell says that a peer failed."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(calibration, "_try", full)
    with pytest.raises(OSError, match="No space left"):
        calibration.calibrate(products[1], "mlp", tmp_path, HOW, lambda _: None)
    known(tmp_path, "ours", "fake")
    monkeypatch.setattr(comparison, "start", full)
    with pytest.raises(OSError, match="No space left"):
        runs.run(WANTED, tmp_path, lambda _: None)


def test_mistakes_end_with_one_line_and_status_2(tmp_path: Path, products: list[Fake]) -> None:
    """A peer that is none, a page without markers, settings that are not there or for no machine like this one, one
    processor for both sides; `peers` alone means `run`."""
    page = tmp_path / "page.md"
    page.write_text("# nothing\n")
    other = tmp_path / "other.json"
    other.write_text('{"classes": {}}')
    for arguments, said in (
        (["--peer", "nobody"], "there is no such peer"),
        (["--peer", "ours"], "there is no such peer"),
        (["calibrate", "--peer", "nobody"], "there is no such peer"),
        (["run", "--write", str(page)], "no place for figures"),
        (["--settings", str(tmp_path / "absent"), "--resume", str(tmp_path)], "there is no such file"),
        (["--settings", str(other), "--resume", str(tmp_path)], "none for this class of machine"),
        (["--server-cpu", "0", "--generator-cpu", "0", "--resume", str(tmp_path)], "need a processor each"),
        (["calibrate", "--out", str(page), "--resume", str(tmp_path)], "no settings of peers"),
        (["page", str(page), "--write", str(page)], "no result of"),
    ):
        done = CliRunner().invoke(main, arguments)
        assert (done.exit_code, said in done.output) == (2, True), done.output
        assert len([line for line in done.output.splitlines() if said in line]) == 1


def _any_answer(running: FakeRunning) -> bool:
    return post(running.url, running.peer.message(running.what.model, {}, "json")).status > 0


def _models(tmp_path: Path) -> Path:
    catalog.write(tmp_path / "models", "mlp")
    return tmp_path / "models"
