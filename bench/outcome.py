"""Outcome: what a load's records say. Pure.

Latencies are counted from when a request was due. A request without an answer enters the percentiles with the time
that it had waited by the end: leaving it out would make a dead server look quick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.openloop import EXPIRED, SOCKET_ERROR, UNANSWERED, Records
from bench.report import Row

LATE_NS = 1_000_000
LATE_SHARE_MAX = 0.01
STARVED_CPUS = 0.8
SLICES = 60


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    def __str__(self) -> str:
        named = (
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("p99.9", self.p999),
            ("max", self.max),
        )
        return ", ".join(f"{name} {value:.2f}" for name, value in named) + " ms"


class Slice(msgspec.Struct, frozen=True):
    """A sixtieth of the load, by due time."""

    at_s: float
    ok_per_second: float
    p50_ms: float
    p99_ms: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came back."""

    seconds: float
    offered_per_second: float
    requests: int
    ok: int
    goodput_per_second: float
    """2xx a second that came within the time of the load: what came later was its backlog."""
    steady_per_second: float
    """The same without the first quarter, in which queues and connections come to be."""
    latency_ms: Latency | None
    """Of 2xx and of what got no answer; None: there was neither."""
    refused_ms: Latency | None
    """Of 503 that were refused at once."""
    expired: int
    """Taken in, and told that their deadline had passed."""
    errors: dict[str, int]
    """By status and code; `socket` broke, `unanswered` had no reply by the end."""
    sends_late: int
    """Handed over by the generator more than 1 ms after they were due: its own lag."""
    lag_p99_ms: float
    waited_for_connection: int
    """Sent more than 1 ms after they were handed over: all connections were busy. The server's slowness; it counts."""
    generator_cpus: float
    generator_limited: bool
    """The generator was late with over 1% of the requests: latencies hold its own lag, the offered rate is too high."""
    checked: int
    """Replies compared with ONNX Runtime, all equal."""
    slices: list[Slice]
    curve: list[tuple[float, float]]
    """Percentile, latency in ms: for the plot."""


def latency(took_ns: NDArray[np.int64]) -> Latency | None:
    """Percentiles; None of nothing. A percentile is a value that was seen (the next higher one)."""
    if not len(took_ns):
        return None
    found = np.percentile(took_ns, (50, 90, 99, 99.9, 100), method="higher") / 1e6
    return Latency(*(float(value) for value in found))


def took_ns(records: Records, end_ns: int) -> NDArray[np.int64]:
    """From due to done; to `end_ns` for what had no answer."""
    return np.where(records.done_ns >= 0, records.done_ns, end_ns) - records.due_ns


def p999_ms(slowest_ms: Sequence[float], count: int) -> float | None:
    """The p99.9 of so many values of which only the slowest are known; None of nothing.

    Args:
        slowest_ms: more than a thousandth of them, in any order.
    """
    every_ns = np.zeros(count, np.int64)
    every_ns[: len(slowest_ms)] = np.rint(np.array(slowest_ms[:count]) * 1e6)
    found = latency(every_ns) if len(slowest_ms) else None
    return found.p999 if found is not None else None


def counted(records: Records) -> NDArray[np.bool_]:
    """What enters the percentiles: 2xx, and what had no answer."""
    return ((records.status >= 200) & (records.status < 300)) | (records.status == UNANSWERED)


def outcome(
    records: Records,
    *,
    seconds: float,
    end_ns: int,
    codes: Mapping[str, int],
    generator_cpus: float = 0.0,
    checked: int = 0,
) -> Outcome:
    """Sum a load up.

    Args:
        end_ns: when the generator stopped waiting, from the start.
        codes: replies other than 2xx, by status and code.
    """
    status, took = records.status, took_ns(records, end_ns)
    ok = (status >= 200) & (status < 300)
    enters = counted(records)
    handed = records.handed_ns >= 0
    lag = np.where(handed, records.handed_ns, end_ns) - records.due_ns
    waited = np.where(records.sent_ns >= 0, records.sent_ns - records.handed_ns, 0)
    errors = Counter(codes)
    for name, value in (("socket", SOCKET_ERROR), ("unanswered", UNANSWERED)):
        if count := int((status == value).sum()):
            errors[name] = count
    late = int((lag > LATE_NS).sum())
    return Outcome(
        seconds=seconds,
        offered_per_second=len(took) / seconds,
        requests=len(took),
        ok=int(ok.sum()),
        goodput_per_second=_good_per_second(records, ok, 0.0, seconds),
        steady_per_second=_good_per_second(records, ok, seconds / 4, seconds),
        latency_ms=latency(took[enters]),
        refused_ms=latency(took[status == 503]),
        expired=int((status == EXPIRED).sum()),
        errors=dict(errors),
        sends_late=late,
        lag_p99_ms=float(np.percentile(lag, 99) / 1e6) if len(lag) else 0.0,
        waited_for_connection=int((waited > LATE_NS).sum()),
        generator_cpus=generator_cpus,
        generator_limited=late > LATE_SHARE_MAX * len(took),
        checked=checked,
        slices=_slices(records, took, ok, enters, seconds),
        curve=_curve(took[enters]),
    )


def _good_per_second(records: Records, ok: NDArray[np.bool_], from_s: float, to_s: float) -> float:
    inside = (records.done_ns > from_s * 1e9) & (records.done_ns <= to_s * 1e9)
    return float((ok & inside).sum() / (to_s - from_s))


def _slices(
    records: Records,
    took: NDArray[np.int64],
    ok: NDArray[np.bool_],
    enters: NDArray[np.bool_],
    seconds: float,
) -> list[Slice]:
    width_s = seconds / SLICES
    index = np.minimum((records.due_ns / 1e9 / width_s).astype(int), SLICES - 1)
    out = []
    for k in range(SLICES):
        here = index == k
        seen = latency(took[here & enters])
        if seen is not None:
            out.append(Slice(k * width_s, float((here & ok).sum() / width_s), seen.p50, seen.p99))
    return out


def _curve(took: NDArray[np.int64]) -> list[tuple[float, float]]:
    if not len(took):
        return []
    shares = [s for s in (*range(0, 100, 5), 99, 99.5, 99.9, 99.95, 99.99) if 100 - s >= 100 / len(took)]
    found = np.percentile(took, shares, method="higher") / 1e6
    return [(float(share), float(value)) for share, value in zip(shares, found, strict=True)]


def _why_limited(seen: Outcome) -> str:
    if seen.generator_cpus < STARVED_CPUS:
        return "something else had its processor"
    return "offer less, or use more --processes"


def rows(seen: Outcome) -> list[Row]:
    """The table of an outcome."""
    wrong = seen.requests - seen.ok
    shown = ", ".join(f"{name}: {count:,}" for name, count in sorted(seen.errors.items()))
    out = [
        Row(
            "offered", f"{seen.offered_per_second:,.0f} requests/s for {seen.seconds:g} s: {seen.requests:,}"
        ),
        Row("goodput (2xx)", f"{seen.goodput_per_second:,.0f} requests/s"),
        Row(
            "latency from due time", "nothing came back" if seen.latency_ms is None else str(seen.latency_ms)
        ),
        Row("not 2xx", f"{wrong:,}" + (f" ({shown})" if shown else ""), "0", wrong == 0),
    ]
    if seen.refused_ms is not None:
        out.append(Row("latency of refusals (503)", str(seen.refused_ms)))
    limited = f"; the generator was the bottleneck: {_why_limited(seen)}" if seen.generator_limited else ""
    out += [
        Row(
            "sends over 1 ms late",
            f"{seen.sends_late:,} (lag p99 {seen.lag_p99_ms:.2f} ms, generator took {seen.generator_cpus:.2f}"
            f" processors){limited}",
            f"<= {LATE_SHARE_MAX:.0%}",
            not seen.generator_limited,
        ),
        Row("waited over 1 ms for a connection", f"{seen.waited_for_connection:,}"),
        Row(
            "replies compared with ONNX Runtime",
            f"{seen.checked:,}, all equal" if seen.checked else "none: --check MODEL.onnx compares 1%",
        ),
    ]
    return out
