"""A request path whose model is split over versions that tests choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.control import snapshot
from gateway.control.changes import shifted, with_variants
from gateway.routing import Change, Route, Variant
from tests.gateway.path import Path_, Sink, SumSession

WHY = Change(by="test", reason="test", at_ns=1)


class Canary(SumSession):
    """Fails on rows that hold 13, is not finite on rows that hold 17; as the primary does on 666."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.version = "2"

    def run(self, feeds: dict[str, Any], names: Any = None, options: Any = None) -> list[Any]:
        x = feeds["X"]
        if (x == 13).any():
            msg = "unlucky"
            raise ValueError(msg)
        (y,) = super().run(feeds, names, options)
        return [np.where((x == 17).any(axis=1, keepdims=True), np.float32("nan"), y)]


def arms(canary_bp: int = 5_000, *others: Variant) -> tuple[Variant, ...]:
    """Version 1 is the primary, version 2 a canary."""
    rest = 10_000 - canary_bp - sum(v.weight_bp for v in others)
    return (
        Variant(name="primary", version="1", role="primary", weight_bp=rest),
        Variant(name="canary", version="2", role="canary", weight_bp=canary_bp),
        *others,
    )


class SplitPath(Path_):
    """`Path_` with model `sum` split.

    Args:
        sessions: by version; `1` is made where it is not given.
    """

    def __init__(
        self,
        tmp_path: Path,
        variants: tuple[Variant, ...],
        sessions: dict[str, Any],
        *settings: str,
        ring_bytes: int = 1 << 20,
    ) -> None:
        self.sessions = {"1": SumSession(), **sessions}
        super().__init__(tmp_path, *settings, session=self.sessions["1"], ring_bytes=ring_bytes)
        self.models.registry.get = lambda model, version: self.sessions[version]
        route = with_variants(self.route, variants, WHY)
        self.publish(route)
        for version in self.sessions:
            if version != "1":
                self.models.on_change("sum", version, "ready", None)

    @property
    def route(self) -> Route:
        """As the snapshot has it."""
        return snapshot.decode(self.snapshot_path.read_bytes())[0].routes["sum"]

    def publish(self, route: Route) -> None:
        """Another generation, with this route."""
        serving, ledger = snapshot.decode(self.snapshot_path.read_bytes())
        versions = tuple(
            snapshot.DesiredVersion(model="sum", version=v, slot=slot)
            for slot, v in enumerate(sorted(self.sessions))
        )
        after = msgspec.structs.replace(
            serving, generation=serving.generation + 1, routes={"sum": route}, versions=versions
        )
        snapshot.write(self.snapshot_path, snapshot.encode(after, ledger))
        self.fleet.publish_generation(after.generation)
        self.models.poll()

    def shift(self, canary_bp: int) -> None:
        """Another revision."""
        self.publish(shifted(self.route, {"canary": canary_bp}, WHY))

    def drawn(self, name: str, units: int = 10_000) -> int:
        """A unit that falls to a variant."""
        table = self.models.get("sum").table  # type: ignore[union-attr]
        return next(unit for unit in range(units) if table.pick(unit).assigned == name)

    def key_of(self, name: str, skip: int = 0) -> str:
        """A routing key that falls to a variant; others with `skip`."""
        table = self.models.get("sum").table  # type: ignore[union-attr]
        keys = (f"u{n}" for n in range(100_000))
        found = (key for key in keys if table.pick_keyed(table.unit_of(key)).assigned == name)
        for _ in range(skip):
            next(found)
        return next(found)

    def slot(self, version: str) -> memoryview:
        """The words of a version."""
        return self.fleet.slot(0, self.models.slot_of("sum", version))


__all__ = ["WHY", "Canary", "Sink", "SplitPath", "arms"]
