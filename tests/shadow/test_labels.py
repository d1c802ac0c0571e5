"""Labels that are late, twice, wrong, or of nothing: one clear outcome each."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.audit.event import Feedback
from gateway.audit.identity import id_prefix, source_of
from shadow import labels as labels_module
from shadow.labels import WAIT_NS
from tests.shadow.play import LABELLED, PLAIN, WORKERS, Play, Shelf
from tests.shadow.story import DAY_NS, SECOND_NS, labels, prediction, route

FOREIGN = f"{id_prefix(source_of('ffff', 'worker', 0), 1)}{0:016x}"
TO_COME = f"{id_prefix(WORKERS[0], 1)}{10_000:016x}"


def served(play: Play, **more: Any) -> str:
    """A prediction of class 0 by version 1; its id."""
    (made,) = play.say(prediction(1, "primary", 10_000, "1", **more))
    return made


def begun() -> Play:
    """A route, all to version 1."""
    play = Play()
    play.say(route(1))
    return play


def outcomes(play: Play) -> dict[str, int]:
    """What became of labels so far."""
    return play.watch.state.labels


def raw(**label: Any) -> Feedback:
    """A feedback event of one label as it stands."""
    return Feedback(kind="label", at_ns=SECOND_NS, model="flights", labels=[label])


def test_a_label_counts_at_the_horizon() -> None:
    """Kept at once; into the week of the prediction when due: right, wrong, and never labelled."""
    play = begun()
    right, wrong, _never = (served(play) for _ in range(3))
    play.say(labels((right, 0, 0), (wrong, 0, 1)))
    play.tick()
    assert outcomes(play) == {"kept": 2}
    assert play.watch.state.accuracy == {}
    play.pass_time(61 * SECOND_NS)
    play.tick()
    week = play.watch.state.accuracy["flights"]["1"]["1969-12-29"]
    assert (week.rows, week.wrong, week.unlabelled) == (3, 1, 1)
    play.pass_time(120 * SECOND_NS)
    play.tick()
    assert week.rows == 3, "judged once"


@pytest.mark.parametrize("of", [FOREIGN, "nonsense", "", "None", TO_COME.upper(), TO_COME + "0"])
def test_of_no_prediction_of_ours(of: str) -> None:
    """Another gateway's, or no id at all: unknown, at once."""
    play = begun()
    play.say(labels((of, 0, 1)))
    play.tick()
    assert outcomes(play) == {"unknown": 1}


def test_of_a_prediction_that_never_comes() -> None:
    """It may still come: nothing yet; unknown once after a day, and late if it is sent again behind that number."""
    play = begun()
    play.say(labels((TO_COME, 0, 1)))
    play.tick()
    assert outcomes(play) == {}
    play.pass_time(SECOND_NS + WAIT_NS)
    play.tick()
    assert outcomes(play) == {}
    play.pass_time(3 * SECOND_NS + WAIT_NS)
    play.tick()
    assert outcomes(play) == {"unknown": 1}


def test_before_its_prediction_was_read() -> None:
    """Sources are read side by side: it waits and counts as any other; its flaws are told when its rows are known."""
    play = begun()
    play.say(labels((TO_COME, 0, 1), (TO_COME, 0, 1), (TO_COME, 0, 0), (TO_COME, 7, 1)), worker=1)
    play.tick()
    assert outcomes(play) == {}
    play.numbers.next[WORKERS[0]] = 10_000
    assert served(play) == TO_COME
    play.tick()
    assert outcomes(play) == {"duplicate": 1, "erratum": 1, "kept": 1, "wrong_row": 1}
    play.pass_time(61 * SECOND_NS)
    play.tick()
    week = play.watch.state.accuracy["flights"]["1"]["1969-12-29"]
    assert (week.rows, week.wrong) == (1, 1)


def wrong(play: Play) -> int:
    """Rows of version 1 that turned out wrong, once all has come due."""
    play.pass_time(70 * SECOND_NS)
    play.tick()
    return play.watch.state.accuracy["flights"]["1"]["1969-12-29"].wrong


def test_the_first_of_two_counts() -> None:
    """The same again is a duplicate, another value an erratum."""
    play = begun()
    of = served(play)
    play.say(raw(id=of, row=0, value=0), raw(id=of, row=0, value=1))
    play.tick()
    assert outcomes(play) == {"kept": 1, "erratum": 1}
    play.say(labels((of, 0, 0)), labels((of, 0, 1)))
    play.tick()
    assert outcomes(play) == {"kept": 1, "duplicate": 1, "erratum": 2}
    assert wrong(play) == 0


@pytest.mark.parametrize("apart", [False, True])
def test_the_first_in_the_log_counts_not_the_one_dated_first(apart: bool) -> None:
    """A label's own time is its sender's word: one dated back is an erratum, in the same tick and in the next."""
    play = begun()
    of = served(play)
    play.say(raw(id=of, row=0, value=0, at_ns=SECOND_NS))
    if apart:
        play.tick()
    play.say(raw(id=of, row=0, value=1, at_ns=1), worker=0)
    play.tick()
    assert outcomes(play) == {"kept": 1, "erratum": 1}
    assert wrong(play) == 0


@pytest.mark.parametrize("read_before", [False, True])
def test_a_label_that_was_sent_before_its_prediction(read_before: bool) -> None:
    """Ids can be guessed: what was received before the prediction is no truth, and takes no place of one."""
    play = begun()
    play.numbers.next[WORKERS[0]] = 10_000
    if not read_before:
        assert served(play, at_ns=5 * SECOND_NS) == TO_COME
    play.say(labels((TO_COME, 0, 1), at_ns=4 * SECOND_NS), worker=1)
    play.tick()
    play.say(labels((TO_COME, 0, 0), at_ns=6 * SECOND_NS), worker=1)
    if read_before:
        play.tick()
        assert served(play, at_ns=5 * SECOND_NS) == TO_COME
    play.tick()
    assert outcomes(play) == {"early": 1, "kept": 1}
    assert wrong(play) == 0


@pytest.mark.parametrize("read_before", [False, True])
def test_feedback_of_another_model(read_before: bool) -> None:
    """Checked by that model's kind of label, so it is none here, and takes no place of one."""
    play = begun()
    play.numbers.next[WORKERS[0]] = 10_000
    if not read_before:
        assert served(play) == TO_COME
    play.say(labels((TO_COME, 0, 1), model="other"), labels((TO_COME, 0, 0)), worker=1)
    if read_before:
        play.tick()
        assert served(play) == TO_COME
    play.tick()
    assert outcomes(play) == {"wrong_model": 1, "kept": 1}
    assert wrong(play) == 0


def test_labels_of_what_was_not_read_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anyone can name numbers to come: so many are kept, ten minutes of the clock; further ones are unknown at once."""
    monkeypatch.setattr(labels_module, "EARLY_MAX", 10)
    play = begun()
    of = served(play)
    play.say(*(labels(*((TO_COME, row, 1) for row in range(7))) for _ in range(2)), worker=1)
    play.say(labels((of, 0, 0)), worker=1)
    play.tick()
    assert outcomes(play) == {"unknown": 4, "kept": 1}
    play.pass_time(SECOND_NS + WAIT_NS + 1)
    play.tick()
    assert outcomes(play) == {"unknown": 14, "kept": 1}
    play.say(labels((TO_COME, 0, 1)), worker=1)
    play.tick()
    assert outcomes(play) == {"unknown": 14, "kept": 1}, "there is room again"


def test_predictions_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many none is joined, which is told; when some have come due there is room again."""
    monkeypatch.setattr(labels_module, "SERVED_MAX", 3)
    play = begun()
    for worker in (1, 0):
        play.say(*(prediction(1, "primary", 10_000, "1") for _ in range(4)), worker=worker)
    play.tick()
    assert (play.watch.state.not_joined, play.store.join.waiting) == (5, 3)
    firsts = sorted(row[0] for row in play.store._db.execute("SELECT id FROM served"))
    assert firsts == sorted(f"{id_prefix(min(WORKERS[:2]), 1)}{seq:016x}" for seq in range(3))
    play.pass_time(61 * SECOND_NS)
    play.tick()
    assert play.store.join.waiting == 0
    served(play, at_ns=61 * SECOND_NS)
    play.tick()
    assert (play.watch.state.not_joined, play.store.join.waiting) == (5, 1)


@pytest.mark.parametrize("value", ["1", None, [1], {}, float("nan"), float("inf"), 0.5, 2**64 * 1.5])
def test_a_value_that_is_no_class(value: Any) -> None:
    """Text, nothing, not finite, between two classes: wrong_type; the row is unlabelled."""
    play = begun()
    of = served(play)
    play.say(raw(id=of, row=0, value=value))
    play.tick()
    assert outcomes(play) == ({"wrong_type": 1} if value != 2**64 * 1.5 else {"kept": 1})


@pytest.mark.parametrize("row", [1, 1000, -1, 2**63, 2**64 - 1, "0", None, 0.0, True])
def test_a_row_that_is_not_there(row: Any) -> None:
    """Beyond the rows, below 0, no number: wrong_row; nothing breaks and nothing is labelled."""
    play = begun()
    of = served(play)
    play.say(raw(id=of, row=row, value=1))
    play.tick()
    assert outcomes(play) == {"wrong_row": 1}
    play.pass_time(61 * SECOND_NS)
    play.tick()
    assert play.watch.state.accuracy["flights"]["1"]["1969-12-29"].unlabelled == 1


@pytest.mark.parametrize("at_ns", ["soon", -1, 2**63, None, 1.5])
def test_a_time_that_is_none(at_ns: Any) -> None:
    """The sender's time decides nothing, whatever it is."""
    play = begun()
    of = served(play)
    play.say(raw(id=of, value=1, at_ns=at_ns))
    play.tick()
    assert outcomes(play) == {"kept": 1}


def test_after_the_horizon_is_late() -> None:
    """Judged without it, never again."""
    play = begun()
    of = served(play)
    play.tick()
    play.pass_time(61 * SECOND_NS)
    play.tick()
    play.say(labels((of, 0, 1)))
    play.tick()
    assert outcomes(play) == {"late": 1}
    assert play.watch.state.accuracy["flights"]["1"]["1969-12-29"].unlabelled == 1


def test_of_a_request_that_was_not_answered() -> None:
    """A failed request gave nothing to judge."""
    play = begun()
    of = served(play, kind="failed")
    play.say(labels((of, 0, 1)))
    play.tick()
    assert outcomes(play) == {"late": 1}


def test_a_model_that_declares_no_labels() -> None:
    """Said as such; no prediction waits."""
    play = Play(Shelf(PLAIN))
    play.say(route(1))
    of = served(play)
    play.say(labels((of, 0, 1)))
    play.tick()
    assert outcomes(play) == {"undeclared": 1}
    assert play.store.join.waiting == 0


def test_one_version_that_declares_them_is_enough() -> None:
    """The other version's labels have nothing to judge, the first one's count."""
    play = Play(Shelf(PLAIN, v1=LABELLED))
    play.say(route(1))
    first = served(play)
    (second,) = play.say(prediction(1, "primary", 10_000, "2"))
    play.say(labels((first, 0, 1), (second, 0, 1)))
    play.tick()
    assert outcomes(play) == {"kept": 1, "late": 1}


def test_values_have_an_error_sum() -> None:
    """kind = value: absolute errors by week, no evidence of wrongness."""
    settings = msgspec.convert(
        {"outputs": {"probabilities": {"kind": "value"}}, "labels": {"kind": "value", "maturity_s": 0}},
        type(LABELLED),
    )
    play = Play(Shelf(settings))
    play.say(route(1))
    of = served(play, scores=[0.25])
    play.say(labels((of, 0, 1.5)))
    play.pass_time(2 * SECOND_NS)
    play.tick()
    week = play.watch.state.accuracy["flights"]["1"]["1969-12-29"]
    assert (week.rows, week.wrong, week.absolute_error) == (1, 0, 0.75)


def test_weeks_are_of_the_prediction() -> None:
    """Monday in UTC, whenever the label came."""
    play = begun()
    for day in (0, 3, 4, 11):
        served(play, at_ns=day * DAY_NS + SECOND_NS)
    play.tick()
    play.pass_time(30 * DAY_NS)
    play.tick()
    weeks = play.watch.state.accuracy["flights"]["1"]
    assert {week: found.rows for week, found in weeks.items()} == {
        "1969-12-29": 2,
        "1970-01-05": 1,
        "1970-01-12": 1,
    }
