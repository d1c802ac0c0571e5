"""Loss: what a product's log lost while its receiver was killed.

A server with its log on, the log's receiver beside it. Marked requests at a steady rate; in their midst the receiver
is killed with -9 and started again so many seconds later. After the last request the log has time to arrive, then
the server is ended in an orderly way, and what the receiver has is read and counted against what was answered.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.kafka import KafkaAbsent
from bench.peers.peer import Begin, Peer, Say, Source, Unavailable
from bench.peers.probes.line import Line
from bench.peers.probes.marks import MARKS, marked
from bench.peers.probes.offered import known_of, not_offered
from bench.peers.probes.receivers import FileReceiver, HttpReceiver, KafkaReceiver, Receiver
from bench.peers.probes.room import demand_room
from bench.peers.probes.small_models import write_scale
from bench.peers.probes.started import Probe, Started, setting_of
from bench.peers.probes.table import NO_LOG, Seen, without_paths

REQUESTS = MARKS
OUTAGE_S = 30.0
BEFORE_SHARE = 0.2
"""Of the requests, before the receiver is killed; as many come after it is back."""
SETTLE_S = 20.0
"""The log is complete when nothing came for so long..."""
ARRIVE_S = 180.0
"""...or after so long at most."""
SENDERS = 8
_SENDER = "loss-sender"
SHORT_REQUESTS, SHORT_OUTAGE_S = 600, 4.0
"""Of the feature table's row."""
ROW = "outlives its receiver"
_KINDS: dict[str, Callable[[Path], Receiver]] = {
    "kafka": KafkaReceiver,
    "http": HttpReceiver,
    "otlp": HttpReceiver,
}


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """One product's count."""

    peer: str
    title: str
    version: str = ""
    log: str = ""
    """Its nearest equivalent of our audit log."""
    receiver: str = ""
    was_killed: bool = False
    sent: int = 0
    answered: int = 0
    """Requests that got a right prediction."""
    arrived: int = 0
    """Of the answered ones, how many are in the log."""
    repeated: int = 0
    """Records that came more than once."""
    unanswered_logged: int = 0
    """Records of requests that were not answered."""
    slowest_ms: float = 0.0
    """The slowest answer while the receiver was gone."""
    settled_s: float = 0.0
    """From the last request until the last record came."""
    source: Source | None = None
    """The page that says that it logs no predictions."""
    unavailable: str = ""
    """Why it was not measured, with its last lines."""

    @property
    def lost(self) -> int:
        """Answered predictions that the log does not have."""
        return self.answered - self.arrived


class Losses(msgspec.Struct, frozen=True):
    """All products' counts."""

    losses: tuple[Loss, ...]


class Sent(msgspec.Struct):
    """What became of the requests."""

    answered: set[int] = msgspec.field(default_factory=set)
    sent: int = 0
    slowest_ms: float = 0.0


class _Plan(NamedTuple):
    """When what happens, by the monotonic clock."""

    requests: int
    began_s: float
    whole_s: float
    kill_s: float
    back_s: float
    ends: threading.Event
    """Nothing more is sent once it is set."""


def count(answered: set[int], records: Sequence[int]) -> tuple[int, int, int]:
    """Arrived of the answered, repeated, and records of what was not answered."""
    times = Counter(records)
    arrived = sum(number in times for number in answered)
    repeated = sum(number_of - 1 for number_of in times.values())
    return arrived, repeated, sum(number not in answered for number in times)


def measure_all(
    peers: Sequence[Peer], say: Say, *, requests: int = REQUESTS, outage_s: float = OUTAGE_S
) -> list[Loss]:
    """Count them all, one after another; a product that cannot be started is told with its last lines.

    Raises:
        OSError: this machine ran short of disk, files or memory: nothing of that time is a product's loss.
    Cost: about two outages and a minute for each.
    """
    found = []
    for peer in peers:
        said = Loss(peer=peer.name, title=peer.title, log=peer.audit)
        try:
            said = msgspec.structs.replace(said, version=peer.prepare(say))
            found.append(measure(peer, said, say, requests=requests, outage_s=outage_s))
        except Unavailable as exc:
            demand_room(exc)
            why = without_paths(f"{exc.why}\n{exc.last_lines}".strip())
            found.append(msgspec.structs.replace(said, unavailable=why))
        except (KafkaAbsent, OSError) as exc:
            demand_room(exc)
            found.append(msgspec.structs.replace(said, unavailable=f"its receiver is not to be had: {exc}"))
        say(text(found[-1]))
    return found


def measure(peer: Peer, known: Loss, say: Say, *, requests: int, outage_s: float) -> Loss:
    """Count one prepared product.

    Raises:
        Unavailable: it does not start.
        KafkaAbsent, OSError: the receiver does not.
    """
    if not peer.audit:
        return msgspec.structs.replace(known, source=not_offered(peer.name, "The log of predictions", ""))
    with tempfile.TemporaryDirectory(prefix="tidegate-loss-", ignore_cleanup_errors=True) as scratch:
        repository, home = Path(scratch) / "models", Path(scratch) / "home"
        home.mkdir()
        write_scale(repository)
        receiver = receiver_of(peer, Path(scratch) / "receiver", home)
        try:
            receiver.start()
            what = Begin(
                repository=repository, model="scale", home=home, audit=True, one_by_one=True,
                receiver=receiver.address, setting=setting_of(peer),
            )  # fmt: skip
            started = Started(peer, what, peer.begin(what))
            try:
                sent = _send_through(started, receiver, requests, outage_s, say)
                settled_s = _settle(receiver, sent.answered, say, peer.name)
            finally:
                started.running.stop()
            arrived, repeated, strange = count(sent.answered, receiver.arrived())
            if arrived < sent.sent:
                demand_room()
        finally:
            receiver.stop()
    return msgspec.structs.replace(
        known, receiver=receiver.kind, was_killed=receiver.can_be_killed, sent=sent.sent,
        answered=len(sent.answered), arrived=arrived, repeated=repeated, unanswered_logged=strange,
        slowest_ms=sent.slowest_ms, settled_s=settled_s,
    )  # fmt: skip


def receiver_of(peer: Peer, directory: Path, home: Path) -> Receiver:
    """What a product's log goes to: as its adapter says, by default files."""
    made = _KINDS.get(peer.receiver_kind)
    return FileReceiver(home) if made is None else made(directory)


def _send_through(started: Started, receiver: Receiver, requests: int, outage_s: float, say: Say) -> Sent:
    """Send at a steady rate, and take the receiver away meanwhile."""
    whole_s = outage_s / (1 - 2 * BEFORE_SHARE)
    began_s = time.monotonic() + 0.1
    kill_s = began_s + BEFORE_SHARE * whole_s
    plan = _Plan(requests, began_s, whole_s, kill_s, kill_s + outage_s, threading.Event())
    parts = [Sent() for _ in range(SENDERS)]
    threads = [
        threading.Thread(
            target=_send, args=(started, part, first, plan), name=f"{_SENDER}-{first}", daemon=True
        )
        for first, part in enumerate(parts)
    ]
    for thread in threads:
        thread.start()
    try:
        time.sleep(max(0.0, plan.kill_s - time.monotonic()))
        if receiver.can_be_killed:
            say(f"{started.peer.name}: {receiver.kind} is killed for {outage_s:g} s")
            receiver.kill9()
            time.sleep(max(0.0, plan.back_s - time.monotonic()))
            receiver.start()
    except BaseException:
        # They would go on into what is measured next.
        plan.ends.set()
        raise
    finally:
        for thread in threads:
            thread.join()
    return Sent(
        answered=set().union(*(part.answered for part in parts)),
        sent=sum(part.sent for part in parts),
        slowest_ms=max(part.slowest_ms for part in parts),
    )


def _send(started: Started, into: Sent, first: int, plan: _Plan) -> None:
    with Line(started.url) as line:
        for number in range(first, plan.requests, SENDERS):
            due_s = plan.began_s + number / plan.requests * plan.whole_s
            if plan.ends.wait(max(0.0, due_s - time.monotonic())):
                return
            x = marked([number])
            at_s = time.monotonic()
            into.sent += 1
            try:
                if started.version_of(line.send(started.message(x)), x) == 1:
                    into.answered.add(number)
            except (OSError, ValueError):
                continue
            if plan.kill_s <= at_s <= plan.back_s:
                into.slowest_ms = max(into.slowest_ms, (time.monotonic() - at_s) * 1e3)


def _settle(receiver: Receiver, answered: set[int], say: Say, name: str) -> float:
    """Wait until all has arrived or nothing comes any more; the seconds until the last record came."""
    began_s = last_s = time.monotonic()
    have = -1
    while time.monotonic() - began_s < ARRIVE_S and time.monotonic() - last_s < SETTLE_S:
        now = len(answered & set(receiver.arrived()))
        if now != have:
            have, last_s = now, time.monotonic()
            say(f"{name}: {have} of {len(answered)} answered predictions are in its log")
        if have == len(answered):
            break
        time.sleep(1.0)
    return last_s - began_s


def text(loss: Loss) -> str:
    """One product's count in one line."""
    if loss.unavailable:
        return f"{loss.title}: not measured: {loss.unavailable.splitlines()[0]}"
    if not loss.log:
        return f"{loss.title}: logs no predictions"
    killed = "killed for the outage" if loss.was_killed else "nothing to kill"
    return (
        f"{loss.title}: {loss.lost} of {loss.answered} answered predictions lost ({loss.receiver}, {killed});"
        f" {loss.sent - loss.answered} of {loss.sent} requests failed; slowest answer {loss.slowest_ms:.0f} ms"
    )


def markdown(losses: Sequence[Loss]) -> str:
    """The counts as a page has them."""
    lines = [
        "| | its log | goes to | answered | in the log | **lost** | twice | requests failed |"
        " slowest answer meanwhile |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for loss in losses:
        title = f"{loss.title} {loss.version}".rstrip()
        if loss.unavailable:
            lines.append(f"| {loss.title} | could not be measured |" + " |" * 7)
            notes.append(
                f"* **{loss.title}** could not be measured: {loss.unavailable}".replace("\n", "\n  > ")
            )
        elif not loss.log:
            lines.append(f"| {title} | – |" + " |" * 7)
            if loss.source is not None:
                page = f"[{loss.source.title}]({loss.source.address})"
                notes.append(f"* **{loss.title}** offers none: {loss.source.says} ({page})")
        else:
            killed = "" if loss.was_killed else " (nothing to kill)"
            lines.append(
                f"| {title} | {loss.log} | {loss.receiver}{killed} | {loss.answered:,} | {loss.arrived:,} |"
                f" **{loss.lost:,}** | {loss.repeated:,} | {loss.sent - loss.answered:,} | {loss.slowest_ms:,.0f} ms |"
            )
            source = known_of(loss.peer, ROW) if loss.lost else None
            if source is not None:
                notes.append(f"* **{loss.title}**: {source.says} ([{source.title}]({source.address}))")
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def outlives_its_receiver(started: Started) -> Seen:
    """The same in small, on servers of its own."""
    peer = started.peer
    if not peer.audit:
        return NO_LOG
    known = Loss(peer=peer.name, title=peer.title, log=peer.audit)
    try:
        seen = measure(peer, known, lambda _: None, requests=SHORT_REQUESTS, outage_s=SHORT_OUTAGE_S)
    except KafkaAbsent as exc:
        return Seen("not seen", f"there is no Kafka here: {exc}")
    said = text(seen).partition(": ")[2]
    if not seen.was_killed:
        return Seen("partly" if not seen.lost else "no", f"{said}; it has no receiver elsewhere")
    return Seen("no" if seen.lost else "yes", said)


PROBES = (
    Probe(
        "The log of predictions", ROW, f"{SHORT_REQUESTS} marked requests, its receiver killed with"
        f" -9 for {SHORT_OUTAGE_S:g} s meanwhile; yes: no answered prediction is missing; partly: it writes files, and"
        " has no receiver", outlives_its_receiver,
    ),
)  # fmt: skip
