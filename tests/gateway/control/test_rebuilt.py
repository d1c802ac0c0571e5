"""The state made again from control's own events is the state that the snapshot holds, whatever happened on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway import fleet as words_of
from gateway.audit.event import Control, decode_event, encode_event
from gateway.control import changes, recovery, snapshot
from gateway.control.engine import Engine
from gateway.control.idempotency import Asked
from gateway.control.state import State, rollback_target
from gateway.errors import GatewayError
from gateway.fleet import READY, SERVING, Fleet
from gateway.routing import Bounds, Change, Route, Variant, first_route
from gateway.settings import Policy

MODELS = ("a", "b")
VERSIONS = ("1", "2", "3", "4")
FOUND = dict.fromkeys(MODELS, VERSIONS)
S = 1_000_000_000
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
"""Snapshots are synced at each step."""
EMPTY = State(snapshot.Serving(gateway_id="00112233aabbccdd", generation=0), snapshot.Ledger())
models = st.sampled_from(MODELS)
weights = st.integers(0, 10_000)


class Recorded:
    """A log that takes everything at once; what it holds went through the topic's encoding."""

    committed = 0
    unavailable = False

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.cut = 0
        """So many of the oldest are gone."""

    @property
    def ring(self) -> Recorded:
        return self

    def append_events(self, events: Sequence[Control]) -> int:
        for event in events:
            seq = len(self.values)
            named = msgspec.structs.replace(event, id=self.event_id(seq))
            self.values.append(encode_event(named))
        return len(self.values) - 1

    def event_id(self, seq: int) -> str:
        return f"00000000000000aa-00000001-{seq:016x}"

    def synced(self, position: int) -> bool:
        return True

    def events(self, behind: str | None = None) -> list[Control]:
        """What is left, behind an id."""
        decoded = [decode_event(value) for value in self.values[self.cut :]]
        return [e for e in decoded if isinstance(e, Control) and (behind is None or e.id > behind)]


def arms(canary: str, weight_bp: int, shadow: str | None) -> tuple[Variant, ...]:
    """A primary on 1, a canary, maybe a shadow."""
    variants = (
        Variant(name="primary", version="1", role="primary", weight_bp=10_000 - weight_bp),
        Variant(name="canary", version=canary, role="canary", weight_bp=weight_bp),
    )
    return variants if shadow is None else (*variants, Variant(name="shade", version=shadow, role="shadow"))


class Rebuilding(RuleBasedStateMachine):
    """Random operators, automata and accidents over two models."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory(dir=MEMORY)
        self.path = Path(self.place.name) / "snapshot"
        self.fleet = Fleet.create(Path(self.place.name) / "fleet", 1)
        words = self.fleet.worker(0)
        words[words_of.STATE], words[words_of.GENERATION] = SERVING, 2**60
        for slot in range(64):
            self.fleet.slot(0, slot)[words_of.LOAD_STATE] = READY
        self.log = Recorded()
        self.loop = asyncio.new_event_loop()
        self.now_ns = 10**18
        self.engine = self.begin(EMPTY)

    def begin(self, state: State) -> Engine:
        engine = Engine(state, self.log, self.fleet, self.path, lambda _: Policy(ramp="auto", lease_s=30))
        engine.publish()
        self.run(engine.place(FOUND))
        return engine

    def run(self, made: object) -> None:
        with contextlib.suppress(GatewayError):
            self.loop.run_until_complete(made)  # type: ignore[arg-type]

    def why(self, by: str = "token:ops") -> Change:
        self.now_ns += S
        return Change(by=by, reason="because", at_ns=self.now_ns)

    def change(
        self, model: str, kind: str, make: Callable[[Route, Change], Route], key: str | None = None
    ) -> None:
        route = self.engine.state.serving.routes[model]
        asked = Asked(key=key, digest="d" * 40, via={"address": "127.0.0.1"})
        self.run(
            self.engine.change_route(
                model, kind, self.why(), make, expected_revision=route.revision, asked=asked
            )
        )

    @initialize()
    def first(self) -> None:
        for model in MODELS:
            self.run(self.engine.first_route(first_route(model, "1", "ab" * 16, self.why("gateway"))))

    @rule(
        model=models,
        canary=st.sampled_from(VERSIONS),
        weight=weights,
        shadow=st.sampled_from((None, *VERSIONS)),
    )
    def set_route(self, model: str, canary: str, weight: int, shadow: str | None) -> None:
        self.change(model, "route", lambda r, c: changes.with_variants(r, arms(canary, weight, shadow), c))

    @rule(model=models, weight=weights, key=st.one_of(st.none(), st.just("again")))
    def shift(self, model: str, weight: int, key: str | None) -> None:
        self.change(model, "shift", lambda r, c: changes.shifted(r, {"canary": weight}, c), key)

    @rule(model=models)
    def promote(self, model: str) -> None:
        self.change(model, "promote", lambda r, c: changes.promoted(r, "canary", c))

    @rule(model=models, named=st.booleans())
    def roll_back(self, model: str, named: bool) -> None:
        target = rollback_target(self.engine.state.ledger, model)
        if named:
            self.change(model, "rollback", lambda r, c: changes.rolled_back_canary(r, "canary", c))
        elif target is not None:
            self.change(model, "rollback", lambda r, c: changes.rolled_back(r, target, c))

    @rule(model=models, version=st.sampled_from(VERSIONS))
    def rearm(self, model: str, version: str) -> None:
        self.change(model, "rearm", lambda r, c: changes.rearmed(r, version, c))

    @rule(model=models, on=st.booleans())
    def hold(self, model: str, on: bool) -> None:
        self.change(model, "freeze" if on else "thaw", lambda r, c: changes.set_frozen(r, on, c))

    @rule(model=models, on=st.booleans())
    def stop(self, model: str, on: bool) -> None:
        self.change(model, "stop" if on else "resume", changes.stopped if on else changes.resumed)

    @rule(model=models, most=st.one_of(st.none(), weights))
    def bound(self, model: str, most: int | None) -> None:
        bounds = None if most is None else Bounds(max_canary_bp=most)
        self.change(model, "bounds", lambda r, c: changes.bounded(r, bounds, c))

    @rule(model=models, version=st.sampled_from((*VERSIONS, "*")), kind=st.sampled_from(("load", "unload")))
    def load(self, model: str, version: str, kind: str) -> None:
        self.run(self.engine.load_or_unload(model, version, kind, self.why()))

    @rule(model=models)
    def renew(self, model: str) -> None:
        revision = self.engine.state.serving.routes[model].revision
        self.run(self.engine.renew_leases(model, self.why("sidecar"), expected_revision=revision))

    @rule(seconds=st.integers(1, 60))
    def leases_end(self, seconds: int) -> None:
        self.now_ns += seconds * S
        self.run(self.engine.tell_leases_over(self.now_ns))

    @rule()
    def log_whole(self) -> None:
        """It says what is, and changes nothing."""
        before = self.engine.state
        self.run(self.engine.log_routes())
        after = self.engine.state
        assert after.serving == before.serving
        assert msgspec.structs.replace(after.ledger, last_event=None) == msgspec.structs.replace(
            before.ledger, last_event=None
        )

    @rule()
    def restart(self) -> None:
        """The successor's state is its predecessor's, ledger included."""
        before = self.engine.state
        serving, ledger = snapshot.decode(self.path.read_bytes())
        state = recovery.caught_up(State(serving, ledger), self.log.events(ledger.last_event))
        assert state.ledger == before.ledger
        assert state.serving.routes == before.serving.routes
        self.engine = self.begin(state)
        assert self.engine.state.serving.versions == before.serving.versions

    @precondition(lambda self: not self.log.cut)
    @rule()
    def lose_snapshot(self) -> None:
        """From the whole log alone: the same, but for slots and the count of generations."""
        before = self.engine.state
        self.path.unlink()
        self.engine = self.begin(recovery.caught_up(EMPTY, self.log.events()))
        self.same_as(before)
        assert self.engine.state.ledger.history == before.ledger.history
        assert self.engine.state.ledger.done == before.ledger.done

    @rule(keep=st.integers(0, 5))
    def retention_and_loss(self, keep: int) -> None:
        """What is older than the last whole state (and a few events less) is gone, and the snapshot too."""
        self.log_whole()
        for _ in range(keep):
            self.change("a", "shift", lambda r, c: changes.shifted(r, {"canary": 100}, c))
        self.log.cut = max(self.log.cut, len(self.log.values) - keep - 1)
        whole = [i for i, e in enumerate(self.log.events()) if e.kind == "routes"]
        if not whole:
            self.log_whole()
        before = self.engine.state
        self.path.unlink()
        self.engine = self.begin(recovery.caught_up(EMPTY, self.log.events()))
        self.same_as(before)

    def same_as(self, before: State) -> None:
        after = self.engine.state
        assert after.serving.routes == before.serving.routes
        assert set(after.ledger.unloaded) == set(before.ledger.unloaded)
        assert set(after.ledger.loaded) == set(before.ledger.loaded)
        assert after.ledger.leases_over == before.ledger.leases_over
        assert after.ledger.last_event == before.ledger.last_event
        held = [(d.model, d.version) for d in before.serving.versions]
        assert [(d.model, d.version) for d in after.serving.versions] == held
        for model in MODELS:
            # In a whole state the present revision stands with its leases as renewed.
            had, known = ([changes.leased(r, None) for r in s.ledger.history[model]] for s in (before, after))
            assert all(revision in had for revision in known)
            targets = [rollback_target(s.ledger, model) for s in (after, before)]
            assert targets[0] == targets[1]

    @invariant()
    def snapshot_is_the_state(self) -> None:
        """What a worker reads is what control holds."""
        assert snapshot.decode(self.path.read_bytes())[0] == self.engine.state.serving

    def teardown(self) -> None:
        self.loop.close()
        self.place.cleanup()


TestRebuilding = Rebuilding.TestCase
TestRebuilding.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
