"""The demonstration: a good version is shifted in, a faulty one is turned back by the sidecar, a good one stays.

`make demo`, `make demo KAFKA=1`, `SEED=` draws the fault. Everything is real: the gateway with its processes, a broker
where one is asked for, the flights of 2013, models trained on them. What this script does is what an operator does:
it puts versions into the repository, changes routes over the admin API, and looks. It tells the sidecar nothing.

Labels are reported a week after landing, as an airline would; so what turns traffic back here does it without any.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from bench.kafka import Broker, KafkaAbsent
from bench.serving import Gateway
from examples.flights.build import SERVED, build_version, pairs
from examples.flights.data import DataMissing, Flights, load
from examples.flights.replay import Answered, Plan, Replay
from gateway.audit.event import Prediction
from gateway.audit.feed import Feed
from gateway.audit.identity import parse_event_id
from gateway.audit.kafka_feed import KafkaFeed
from gateway.audit.spool_feed import SpoolFeed
from shadow.bundles import Bundles
from shadow.replay import Source, replay, stored_of
from shadow.verdicts import Stored, gateway_sources, spool_verdicts

FROM, UNTIL = date(2013, 7, 29), date(2013, 10, 1)
LABEL_LAG_NS = 7 * 86_400 * 1_000_000_000
FLIGHTS_A_SECOND = 1_200
"""At most: about a day of flights a second, so that a tick is half a day."""
TICK_S = 0.5
SHADOWED, AT_A_TENTH, AT_A_HALF, PATIENCE, TWIN = 2_000, 3_000, 2_000, 12_000, 6_000
"""Flights of each part; PATIENCE: within so many the faulty version has to be turned back."""
DECLARED_SD = 1.5
"""How far version 2, of another season, may be off version 1: said before it is served. On the stormy days of August
(1st, 2nd, 8th, 9th) they are 0.8 to 1.3 sd apart, on others less than 0.4."""
SETTINGS = (
    "sidecar.clock=event",
    f"sidecar.tick_s={TICK_S}",
    "policy.flights.ramp=auto",
    "policy.flights.lease_s=10",
    f'policy.flights.versions={{"2":{{"max_shift_sd":{{"probabilities":{DECLARED_SD}}}}}}}',
)
KAFKA_WAIT_S = 60.0


class Fault(NamedTuple):
    """What the exporter of version 3 got wrong, and when it is put in."""

    a: str
    b: str
    shift_sd: float
    after_flights: int


class Counts(msgspec.Struct):
    """What the demonstration ends with."""

    answered: int = 0
    recorded: int = 0
    forwarded: int | None = None
    """None: no broker was asked for."""
    missing: int = 0
    decisions: int = 0
    ticks: int = 0
    replayed: dict[str, str] = {}
    """By where it was replayed from: "the same", or what differs."""
    wrong: list[str] = []
    """What did not end as it should."""


class Screen:
    """Tells the story on a terminal, a line a step, with the replayed date."""

    def __init__(self, as_json: bool) -> None:
        self._console = Console(stderr=as_json, highlight=False)
        if not self._console.is_terminal:
            # A pipe has no width; folded lines cannot be searched.
            self._console.width = 300
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("flights"))
        self.bar = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._task: TaskID | None = None

    def tell(self, text: str, at_ns: int | None = None, style: str = "") -> None:
        """One line."""
        stamp = "      " if at_ns is None else f"{datetime.fromtimestamp(at_ns // 10**9, UTC):%b %d}"
        self._console.print(
            f"[dim]{stamp}[/dim]  [{style}]{text}[/{style}]" if style else f"[dim]{stamp}[/dim]  {text}"
        )

    def flown(self, done: int, total: int) -> None:
        """How far the replay is."""
        if self._task is None:
            self._task = self.bar.add_task("replaying 2013", total=total)
        self.bar.update(self._task, completed=done)


class Story:
    """One run.

    Args:
        home: an empty directory for repository, state and broker.
    """

    def __init__(self, home: Path, fault: Fault, flights: Flights, screen: Screen, kafka: bool) -> None:
        self.fault = fault
        self.screen = screen
        self.models = home / "models"
        self.counts = Counts()
        self.answers: Counter[str] = Counter()
        self.ledger = home / "answered.txt"
        self._wanted_kafka = kafka
        self._broker = Broker(home / "kafka") if kafka else None
        self._flights = flights._replace(label_ns=flights.label_ns + LABEL_LAG_NS)
        self._gateway = Gateway(self.models, home / "state", settings=SETTINGS)
        self._replay: Replay | None = None

    # --- the parts -------------------------------------------------------------------------

    async def run(self) -> Counts:
        """All of it."""
        async with self._running() as flying:
            await self._shadow()
            await self._shift_in()
            await self._faulty()
            await self._twin()
            self.replay.stop()
            await flying
            await self._settled()
        await asyncio.to_thread(self._count)
        return self.counts

    @property
    def replay(self) -> Replay:
        """The flights in the air."""
        assert self._replay is not None  # noqa: S101
        return self._replay

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[asyncio.Task[Any]]:
        self._put("1")
        if self._broker is not None:
            self.tell("starting a Kafka broker …")
            await asyncio.to_thread(self._broker.start)
            self._gateway = Gateway(
                self.models,
                self._gateway.state_dir,
                settings=(
                    *SETTINGS,
                    f"kafka.bootstrap_servers={self._broker.bootstrap}",
                    "sidecar.source=kafka",
                ),
            )
        try:
            await asyncio.to_thread(self._gateway.start)
            self.tell(f"the gateway serves flights version 1 at {self._gateway.data_url}")
            speed = FLIGHTS_A_SECOND * 86_400 / 950
            plan = Plan(self._gateway.data_url, speed=speed, connections=8)
            self._replay = Replay(self._flights, plan, on_answer=self._answered, ledger=self.ledger)
            flying = asyncio.create_task(self._replay.run())
            try:
                yield flying
            finally:
                self._replay.stop()
                await asyncio.gather(flying, return_exceptions=True)
        finally:
            await asyncio.to_thread(self._gateway.stop)
            if self._broker is not None:
                await asyncio.to_thread(self._count_forwarded)
                await asyncio.to_thread(self._broker.stop)

    async def _shadow(self) -> None:
        self.tell("version 2, trained on spring, is put into the repository")
        await self._load("2")
        await self._set_route(("primary", "1", "primary", 10_000), ("next", "2", "shadow", 10_000))
        self.tell("version 2 shadows version 1: it answers every flight, and nobody sees its answers")
        await self._fly(SHADOWED)
        self.replay.pause()
        found = await self._shadow_report()
        self.replay.proceed()
        share = found["flipped"] / max(found["decided"], 1)
        self.tell(
            f"shadow: {found['pairs']:,} flights compared, {share:.1%} would be decided otherwise, scores"
            f" {found['score']['mean_in_sd']:+.2f} sd on average, {found['failures']} failures"
        )

    async def _shift_in(self) -> None:
        await self._set_route(("primary", "1", "primary", 9_000), ("canary", "2", "canary", 1_000))
        self.tell(f"version 2 gets 10% of the traffic; declared is a shift of up to {DECLARED_SD:g} sd")
        await self._fly(AT_A_TENTH)
        await self._post("shift", {"weights_bp": {"canary": 5_000}})
        self.tell("nothing speaks against it: 50%")
        await self._fly(AT_A_HALF)
        self._expect((await self._canary_weight()) == 5_000, "version 2 was turned back")
        self._expect(
            self.answers["2"] > AT_A_HALF * 0.4, "version 2 did not get its traffic: the lease ran out"
        )
        await self._post("promote", {"variant": "canary"})
        self.tell("version 2 is promoted; version 1 stays warm", style="green")
        await self._fly(self.fault.after_flights)

    async def _faulty(self) -> None:
        await asyncio.to_thread(build_version, self.models / "flights" / "3", (self.fault.a, self.fault.b))
        await self._load("3")
        await self._set_route(("primary", "2", "primary", 9_000), ("canary", "3", "canary", 1_000))
        self.tell(
            f"version 3 gets 10%: a retrain whose exporter swapped {self.fault.a} and {self.fault.b}."
            " Its own checks pass. Nobody tells the gateway"
        )
        before, taken = self.answers["3"], self.replay.counters.answered
        while await self._canary_weight():
            if self.replay.counters.answered - taken > PATIENCE or self.replay.taken >= len(
                self._flights.rows
            ):
                self._expect(False, f"version 3 was not turned back within {PATIENCE:,} flights")
                return
            await asyncio.sleep(0.05)
        flown = self.replay.counters.answered - taken
        body = next((d for d in self._decisions() if d["versions"].get(d["variant"]) == "3"), None)
        if body is None:
            self._expect(False, "version 3 lost its traffic without a decision")
            return
        self.tell(f"the sidecar: {body['says']}", style="bold red")
        self.tell(
            f"and turned the traffic back: {self.answers['3'] - before:,} of {flown:,} flights were answered by"
            " version 3, before any label",
            style="red",
        )
        self._expect(
            body["action"] == "rollback" and body["latched"] == ["3"], "version 3 was not rolled back"
        )
        self._expect(body["labelled"] == 0, "labels of version 3 had been judged by then")
        await self._fly(500)

    async def _twin(self) -> None:
        await asyncio.to_thread(build_version, self.models / "flights" / "4")
        await self._load("4")
        await self._set_route(("primary", "2", "primary", 9_000), ("canary", "4", "canary", 1_000))
        self.tell("version 4 gets 10%: the same retrain, exported without the fault")
        before = self.answers["4"]
        await self._fly(TWIN)
        self._expect((await self._canary_weight()) == 1_000, "version 4 was turned back, and it is sound")
        share = (self.answers["4"] - before) / TWIN
        self._expect(share > 0.08, f"version 4 answered {share:.1%} of the flights: its lease ran out")
        self.tell(f"after {TWIN:,} flights nothing speaks against version 4: it stays", style="green")

    # --- what an operator does -------------------------------------------------------------

    def tell(self, text: str, style: str = "") -> None:
        """A line, with the replayed date once flights fly."""
        flown = self._replay is not None and self._replay.taken
        self.screen.tell(text, self.replay.clock_ns if flown else None, style)

    def _put(self, version: str) -> None:
        shutil.copytree(SERVED / version, self.models / "flights" / version)

    async def _load(self, version: str) -> None:
        if not (self.models / "flights" / version).exists():
            await asyncio.to_thread(self._put, version)
        await self._admin("POST", "models/refresh", {})
        for _ in range(600):
            models = await self._admin("GET", "models/flights")
            states = {v["version"]: v["state"] for v in models["versions"]}
            if states.get(version) == "ready":
                return
            await asyncio.sleep(0.05)
        msg = f"version {version} is not ready: {states}"
        raise click.ClickException(msg)

    async def _set_route(self, *variants: tuple[str, str, str, int]) -> None:
        named = [
            {
                "name": name,
                "version": version,
                "role": role,
                ("sample_bp" if role == "shadow" else "weight_bp"): share,
            }
            for name, version, role, share in variants
        ]
        await self._change("PUT", "routes/flights", {"variants": named})

    async def _post(self, what: str, body: dict[str, Any]) -> None:
        await self._change("POST", f"routes/flights/{what}", body)

    async def _change(self, method: str, path: str, body: dict[str, Any]) -> None:
        route = await self._admin("GET", "routes/flights")
        await self._admin(method, path, {**body, "reason": "demonstration"}, revision=route["revision"])

    async def _canary_weight(self) -> int:
        route = await self._admin("GET", "routes/flights")
        return sum(v["weight_bp"] for v in route["variants"] if v["role"] == "canary")

    async def _admin(self, method: str, path: str, body: object = None, revision: int | None = None) -> Any:
        reply = await asyncio.to_thread(self._gateway.admin, method, path, body, revision=revision)
        if reply.status >= 300:
            msg = f"{method} {path}: {reply.status} {reply.content}"
            raise click.ClickException(msg)
        return reply.content

    async def _fly(self, count: int) -> None:
        """Wait until so many more flights are answered."""
        until = self.replay.counters.answered + count
        while self.replay.counters.answered < until:
            if self.replay.taken >= len(self._flights.rows):
                self._expect(False, "the flights of the quarter were over too early")
                return
            self.screen.flown(self.replay.taken, len(self._flights.rows))
            await asyncio.sleep(0.05)

    # --- what came of it -------------------------------------------------------------------

    def _answered(self, answered: Answered) -> None:
        at = answered.body.find(b'"model_version":"') + 17
        self.answers[answered.body[at : answered.body.index(b'"', at)].decode()] += 1

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.counts.wrong.append(otherwise)
            self.tell(otherwise, style="bold red")

    @property
    def _spool(self) -> Path:
        return self._gateway.state_dir / "spool"

    def _gateway_id(self) -> str:
        return (self._gateway.state_dir / "gateway_id").read_text().strip()

    def _decisions(self) -> list[dict[str, Any]]:
        found = spool_verdicts(self._spool, gateway_sources(self._gateway_id()), {})
        return [event.body for event in found if event.kind == "decision"]

    async def _shadow_report(self) -> dict[str, Any]:
        """What `tidegate shadow report` says of version 2, once the mirror has caught up a little."""
        where = ("--state-dir", str(self._gateway.state_dir), "--models", str(self.models))
        for _ in range(40):
            report = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway.cli", "shadow", "report", "--json", *where,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            said, _ = await report.communicate()
            pairs = msgspec.json.decode(said)["pairs"] if said else []
            found: dict[str, Any] = next((pair for pair in pairs if pair["shadow"] == "2"), {"pairs": 0})
            if found["pairs"] >= SHADOWED // 4:
                failures = sum(found["failed"].values()) + found["nonfinite"]["shadow"]
                return {**found, "failures": failures}
            await asyncio.sleep(0.5)
        msg = f"the mirror compared {found['pairs']} flights in 20 s: see {self._gateway.log}"
        raise click.ClickException(msg)

    async def _settled(self) -> None:
        """Wait until the sidecar has closed a tick over the last flight."""
        ends = await asyncio.to_thread(_ends, SpoolFeed(self._spool))
        for _ in range(100):
            ticks = await asyncio.to_thread(self._ticks)
            cut = {key: end for one in ticks for key, (_, end) in one.tick.cuts.items()}
            if all(cut.get(key, 0) > seq for key, seq in ends.items()):
                return
            await asyncio.sleep(0.1)

    def _ticks(self) -> list[Stored]:
        return stored_of(spool_verdicts(self._spool, gateway_sources(self._gateway_id()), {}))

    def _count(self) -> None:
        counts = self.counts
        answered = set(self.ledger.read_text().split())
        recorded = {event.id for event in _predictions(SpoolFeed(self._spool), 0)}
        counts.answered, counts.recorded = len(answered), len(recorded)
        counts.missing = len(answered - recorded)
        self._expect(not counts.missing, f"{counts.missing} answered flights are not in the log")
        self._expect(self.replay.counters.unknown == 0, "a request's fate is unknown")
        stored = self._ticks()
        counts.ticks = len(stored)
        counts.decisions = sum(len(one.decisions) for one in stored)
        self._expect(counts.decisions == 1, f"{counts.decisions} decisions, expected one")
        self._replayed("spool", Source(lambda: SpoolFeed(self._spool), 0))

    def _count_forwarded(self) -> None:
        assert self._broker is not None  # noqa: S101
        bootstrap = self._broker.bootstrap
        topic = "tidegate.events.v1"
        feed = KafkaFeed(bootstrap, topic)
        self.counts.forwarded = len({event.id for event in _predictions(feed, 3000)})
        feed.close()
        self._replayed("topic", Source(lambda: KafkaFeed(bootstrap, topic), 3000))

    def _replayed(self, name: str, source: Source) -> None:
        done = replay(source, self._gateway_id(), self._ticks(), Bundles(self.models))
        differing = [one.differs for one in done.decisions if one.differs is not None]
        self.counts.replayed[name] = differing[0] if differing else "the same"
        self._expect(not differing, f"replayed from the {name}: {differing[:1]}")


def _predictions(feed: Feed, wait_ms: int) -> Iterator[Prediction]:
    """Answered predictions of a log, to its end."""
    while events := feed.read(5000, wait_ms).events:
        yield from (event for event in events if isinstance(event, Prediction) and event.kind == "done")


def _ends(feed: Feed) -> dict[str, int]:
    """The last request of each epoch, as the cuts of a tick name them."""
    last: dict[str, int] = {}
    while events := feed.read(5000, 0).events:
        for event in events:
            if isinstance(event, Prediction):
                which = parse_event_id(event.id)
                last[f"{which.source:016x}-{which.epoch:08x}"] = which.seq
    return last


def draw(seed: int) -> Fault:
    """The fault of a seed: two columns whose swap shows (0.5 sd on July to September), and when."""
    rng = random.Random(seed)  # noqa: S311
    chosen = rng.choice([pair for pair in pairs() if abs(pair["shift_sd"]) >= 0.5])
    return Fault(chosen["a"], chosen["b"], chosen["shift_sd"], rng.randint(300, 2_000))


@click.command()
@click.option("--seed", type=int, default=1, show_default=True, help="Draws the fault and its time.")
@click.option("--kafka", is_flag=True, help="Go through a real broker (Java 17 and Maven).")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Keep repository and log in this new directory."
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON; the story goes to stderr.")
@click.pass_context
def command(ctx: click.Context, seed: int, kafka: bool, keep: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Watch a bad model being caught. Exit code 0: all ended as it should."""
    screen = Screen(as_json)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # A closed terminal or a polite kill cleans up as Ctrl-C does.
        signal.signal(number, signal.default_int_handler)
    try:
        flights = load().between(FROM, UNTIL)
    except DataMissing as exc:
        raise click.exceptions.Exit(_failed(str(exc), 2)) from None
    fault = draw(seed)
    with contextlib.ExitStack() as stack:
        home = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-demo-")))
        home.mkdir(parents=True, exist_ok=True)
        stack.enter_context(screen.bar)
        story = Story(home, fault, flights, screen, kafka)
        try:
            counts = asyncio.run(story.run())
        except (KafkaAbsent, ChildProcessError, TimeoutError) as exc:
            raise click.exceptions.Exit(_failed(str(exc), 2)) from None
    _end(counts, screen, as_json)
    ctx.exit(1 if counts.wrong else 0)


def _failed(text: str, code: int) -> int:
    click.echo(f"tidegate demo: {text}", err=True)
    return code


def _end(counts: Counts, screen: Screen, as_json: bool) -> None:
    forwarded = "not asked for (KAFKA=1)" if counts.forwarded is None else f"{counts.forwarded:,}"
    if as_json:
        click.echo(msgspec.json.encode(counts).decode())
    screen.tell("")
    for name, value in (
        ("answered", f"{counts.answered:,}"),
        ("recorded", f"{counts.recorded:,}"),
        ("forwarded", forwarded),
        ("missing", f"{counts.missing:,}"),
        ("decisions", f"{counts.decisions} in {counts.ticks} ticks"),
        *((f"replayed from the {name}", said) for name, said in counts.replayed.items()),
    ):
        screen.tell(f"{name:<24} {value}")
    screen.tell("all ended as it should" if not counts.wrong else "; ".join(counts.wrong), style="bold")


if __name__ == "__main__":
    command()
