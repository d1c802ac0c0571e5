"""Refusals: what a product makes of requests that are wrong, in its own form.

Each is sent; yes is a 4xx, partly a 5xx, and a right answer to a right request after it. What is wrong is made from the
product's own right message, so that nobody is asked in a foreign form.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np

from bench.peers.peer import Message
from bench.peers.probes.line import Line, status_of, throw
from bench.peers.probes.started import Probe, Started, in_batches_or_not
from bench.peers.probes.table import Seen, refused_as

GROUP = "Withstands wrong requests"
WAIT_S = 5.0
IDLE_S = 20.0
_DEEP = 100_000
_HUGE_BYTES = 8 << 30


def _right(started: Started) -> Message:
    return started.message(np.array([[1.5, 2.5, 3.5, 4.5]], np.float32))


def _refuses(make: Callable[[Started], Message | None]) -> Callable[[Started], Seen | None]:
    def run(started: Started) -> Seen | None:
        message = make(started)
        if message is None:
            return Seen("not seen", "its form has no place for it")
        with Line(started.url) as line:
            reply = line.send(message)
        return _judged(started, reply.status, reply.text())

    return run


def _judged(started: Started, status: int, said: str) -> Seen:
    if not started.is_right(np.ones((1, 4), np.float32)):
        return Seen("no", f"{said}; after it a right request was not answered")
    return Seen(refused_as(status), said)


def _with_body(change: Callable[[bytes], bytes]) -> Callable[[Started], Message | None]:
    def make(started: Started) -> Message:
        message = _right(started)
        return message._replace(body=change(message.body))

    return make


def _text_for_number(started: Started) -> Message | None:
    message = _right(started)
    if started.form != "json":
        return None
    body, count = re.subn(rb"\b2\.5\b", b'"two and a half"', message.body, count=1)
    return message._replace(body=body) if count else None


def too_wide(started: Started) -> Message:
    """Five values for an input of four."""
    return started.message(np.ones((1, 5), np.float32))


def huge(started: Started) -> Seen:
    """A body of eight gibibytes is announced; nothing of it is sent."""
    message = _right(started)
    head = message.whole().partition(b"\r\n\r\n")[0]
    head = re.sub(rb"content-length: \d+", f"content-length: {_HUGE_BYTES}".encode(), head)
    began_s = time.monotonic()
    came = throw(started.url, head + b"\r\n\r\n" + message.body, WAIT_S)
    took_s = time.monotonic() - began_s
    answer, said = refused_as(status_of(came)), came[:80].decode(errors="replace")
    if not came and took_s < WAIT_S - 0.5:
        answer, said = "partly", f"it hung up after {took_s:.1f} s, without a word"
    elif not came:
        said = f"no answer within {WAIT_S:g} s: it waits for the rest"
    if not started.is_right(np.ones((1, 4), np.float32)):
        return Seen("no", f"{said}; a right request beside it was not answered")
    return Seen(answer, said)


def half_head(started: Started) -> Seen:
    """A client that sends half a head and nothing more."""
    head = _right(started).whole()[:40]
    began_s = time.monotonic()
    came = throw(started.url, head, IDLE_S)
    took_s = time.monotonic() - began_s
    if took_s >= IDLE_S - 0.5:
        return Seen("no", f"its connection was still open after {IDLE_S:g} s")
    return Seen("yes", f"hung up after {took_s:.1f} s{f' with {status_of(came)}' if came else ''}")


def bad_company(started: Started) -> Seen:
    """Broken requests among right ones, side by side."""
    rows = [np.array([[i, i + 0.5, -i, 1]], np.float32) for i in range(400)]
    bad = started.message(np.ones((1, 5), np.float32))
    messages = [bad if i % 10 == 3 else started.message(row) for i, row in enumerate(rows)]
    replies = started.at_once(messages)
    wrong, failed, refused = 0, 0, 0
    last = ""
    for i, (row, reply) in enumerate(zip(rows, replies, strict=True)):
        if i % 10 == 3:
            refused += not isinstance(reply, OSError) and 400 <= reply.status < 500
            continue
        try:
            if isinstance(reply, OSError):
                raise reply
            wrong += started.version_of(reply, row) != 1
        except (OSError, ValueError) as exc:
            failed, last = failed + 1, str(exc)
    said = f"of 360 right requests {failed} failed, {wrong} had a wrong answer; of 40 broken ones {refused} got a 4xx"
    return Seen("no" if failed or wrong else "yes", f"{said}{f' ({last})' if last else ''}")


def _probe(name: str, asks: str, make: Callable[[Started], Message | None]) -> Probe:
    return Probe(
        GROUP, name, f"{asks}; yes is a 4xx, partly a 5xx, and a server that goes on", _refuses(make)
    )


PROBES = (
    _probe("no JSON", "a body of words", _with_body(lambda _: b"this is no JSON")),
    _probe("an empty body", "no body at all", _with_body(lambda _: b"")),
    _probe("a body cut short", "a right body without its last 20 bytes", _with_body(lambda body: body[:-20])),
    _probe("a text for a number", "one value replaced by words", _text_for_number),
    _probe("too many values", "five columns for an input of four", too_wide),
    _probe("100,000 brackets", "JSON nested that deep", _with_body(lambda _: b"[" * _DEEP)),
    Probe(GROUP, "a body of 8 GiB announced", f"yes is a 4xx before it is sent, within {WAIT_S:g} s;"
          " partly: it hangs up", huge),
    Probe(GROUP, "half a head, then nothing", f"yes is a connection that is closed within {IDLE_S:g} s", half_head),
    Probe(GROUP, "broken requests beside right ones", "32 connections, every tenth request is too wide; yes is that"
          " every right one is answered right, partly that with batching off", in_batches_or_not(bad_company)),
)  # fmt: skip
