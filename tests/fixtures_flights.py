"""The flights' data for tests: fetched once into the user's cache; what needs it is skipped where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.flights.data import DataMissing, Flights, load

SERVED = Path(__file__).resolve().parents[1] / "examples" / "models" / "flights"


@pytest.fixture(scope="session")
def flights_2013() -> Flights:
    """All flights of the year."""
    try:
        return load()
    except DataMissing as exc:
        pytest.skip(f"flights: {exc}")


@pytest.fixture(scope="session")
def few_flights() -> Flights:
    """2,000 flights of January to March, in version 1's reference: no data needed. Each lands after three hours."""
    with np.load(SERVED / "1" / "reference.npz") as file:
        rows, times_ns, labels = file["rows"], file["times_ns"], file["labels"]
    days = (times_ns // 86_400_000_000_000).astype(np.int32)
    return Flights(rows, times_ns, labels.astype(np.int8), times_ns + 3 * 3_600_000_000_000, days)
