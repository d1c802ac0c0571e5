"""Which setting is a peer's best, and what is said of it."""

from __future__ import annotations

import tempfile

import msgspec
from fake_rounds import found, result

from bench.peers import calibration, choosing, page
from bench.peers.choosing import chosen
from bench.peers.figures import (
    Chosen,
    Failed,
    Pair,
    Tried,
)
from bench.peers.peer import Setting


def test_the_best_setting_is_chosen_among_those_that_answered_everything() -> None:
    """And its reason has the figures of the others."""
    tried = [
        Tried(setting=Setting(1, True), per_cpu_s=900.0),
        Tried(setting=Setting(2, True), per_cpu_s=950.0),
        Tried(setting=Setting(4, True), per_cpu_s=2000.0, why_not="7 of 90 requests failed"),
    ]
    best = chosen(tried)
    assert best.setting == Setting(2, True)
    assert best.reason == (
        "950 requests per CPU second; 1 worker, batching on: 900; 4 workers, batching on: 7 of 90 requests failed"
    )


def test_a_reason_says_that_the_machine_was_busy() -> None:
    """A choice between figures that others disturbed may be another one next time."""
    tried = [
        Tried(setting=Setting(1, True), per_cpu_s=900.0, foreign_cpus=0.02),
        Tried(setting=Setting(2, True), per_cpu_s=500.0, foreign_cpus=0.55),
    ]
    assert "others took up to 0.55 processors meanwhile" in chosen(tried).reason
    assert "others" not in chosen(tried[:1]).reason


def test_of_settings_that_come_near_to_each_other_the_one_with_fewest_workers_is_chosen() -> None:
    """Chance between 930 and 950 is not paid with four times the memory; nor is a server chosen that waits."""
    tried = [
        Tried(setting=Setting(1, True), per_cpu_s=930.0, per_second=900.0),
        Tried(setting=Setting(1, False), per_cpu_s=920.0, per_second=910.0),
        Tried(setting=Setting(4, True), per_cpu_s=950.0, per_second=940.0),
        Tried(setting=Setting(2, True), per_cpu_s=2000.0, per_second=40.0),
    ]
    best = chosen(tried)
    assert best.setting == Setting(1, True)
    assert "4 workers, batching on: 950 (not 5% more, of more workers)" in best.reason
    assert "2 workers, batching on: 2,000 (waits: 40 a second)" in best.reason


def test_what_is_slow_and_busy_does_not_wait() -> None:
    """It answers less than half as many a second as another because a request costs it more: its figure says so."""
    tried = [
        Tried(setting=Setting(1, True), per_cpu_s=900.0, per_second=900.0),
        Tried(setting=Setting(1, False), per_cpu_s=400.0, per_second=390.0),
        Tried(setting=Setting(2, True), per_cpu_s=800.0, per_second=390.0),
    ]
    said = chosen(tried).reason
    assert said.endswith("1 worker, batching off: 400; 2 workers, batching on: 800 (waits: 390 a second)")


def test_a_page_says_reasons_of_before_as_they_would_be_said_now() -> None:
    """From what was tried; what somebody wrote in its place, or for another choice, stands."""
    tried = [
        Tried(setting=Setting(2, True), per_cpu_s=900.0, per_second=900.0),
        Tried(setting=Setting(1, True), per_cpu_s=950.0, per_second=40.0),
    ]
    before = Chosen(
        setting=Setting(2, True), reason="900 requests per CPU second; 1 worker: 950", tried=tried
    )
    seen = result(found(6000, 100))
    seen.found.pairs[:] = [Pair(peer="litserve", model="mlp", theirs=before, ours=before)]
    text = page.markdown(seen)
    assert text.count("900 requests per CPU second; 1 worker, batching on: 950 (waits: 40 a second) |") == 2
    for mine in (
        msgspec.structs.replace(before, reason="by hand"),
        msgspec.structs.replace(before, setting=Setting(4, True)),
        msgspec.structs.replace(before, tried=[]),
    ):
        assert choosing.reason(mine) == mine.reason


def test_committed_settings_have_the_reasons_that_a_calibration_says_now() -> None:
    """Of every class of machine."""
    every = [
        one
        for found in calibration.read(calibration.COMMITTED).classes.values()
        for models in found.peers.values()
        for one in models.values()
    ]
    assert len(every) > 9
    assert [one.reason for one in every if one.reason != choosing.reason(one)] == []


def test_no_path_of_this_machine_gets_into_a_page_and_no_line_breaks_a_table() -> None:
    """What products say, in settings and of failures."""
    place = f"{tempfile.gettempdir()}/tidegate-x/home/app.py"
    said = f"no {place}:\n\nTraceback | {place}"
    tried = [Tried(setting=Setting(1, True), per_cpu_s=9.0), Tried(setting=Setting(2, True), why_not=said)]
    mine = chosen(tried)
    seen = result(found(6000, 100))
    by_hand = msgspec.structs.replace(mine, reason=said)
    seen.found.pairs[:] = [Pair(peer="litserve", model="mlp", theirs=mine, ours=by_hand)]
    seen.found.failed.append(Failed(peer="litserve", what="install", why=said, last_lines=said))
    text = page.markdown(seen)
    assert tempfile.gettempdir() not in text
    assert text.count("| no …/app.py: Traceback / …/app.py |") == 1
    assert "9 requests per CPU second; 2 workers, batching on: no …/app.py: Traceback / …/app.py |" in text
    assert "install: no …/app.py: Traceback | …/app.py" in text
