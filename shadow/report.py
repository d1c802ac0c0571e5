"""What shadows say against what was answered, over a whole log. Between the log and `tidegate shadow report`.

Predictions and shadow events lie in different sources and come in any order; each waits for the other here. A
prediction waits only when its route says that a shadow is to answer it, so that memory holds what one source is ahead
of the other, and not the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from gateway.audit.drained import sources_of
from gateway.audit.event import Control, EpochOpen, Event, Prediction, Shadow, Tensor
from gateway.audit.identity import source_of
from loaders.bundle import BundleSettings
from shadow.bundles import Bundles
from shadow.compare import Comparison
from shadow.outputs import Judged, OutputReader
from shadow.replicas import LIVE
from shadow.routes import RouteBook

WAITING_MAX = 200_000
"""Requests that wait for their shadows at most; the oldest go first, unanswered."""
GATEWAYS_MAX = 64
"""Of one topic; further ones are not read, unless one is named."""
_WORKERS = 256
_DIGITS_MAX = 1000


class Pair(NamedTuple):
    """A version that answered and one that shadowed it."""

    model: str
    primary: str
    shadow: str


class _Asked(NamedTuple):
    """What is kept of a prediction until its shadows have answered."""

    model: str
    version: str
    tree_sha256: str | None
    rows: int
    outputs: list[Tensor]
    waits_for: set[str]


class Report:
    """Folds a log; hand it every event, then read `pairs`.

    Args:
        bundles: what outputs mean; versions that it cannot tell are read by their outputs alone.
        model: only this one.
        gateway_id: only this gateway's, where a topic holds several.

    Threading: one thread. Cost: about 60 us a pair. Memory: about 1 KB a shadow event whose prediction was not read
    yet, and a prediction whose shadow was not.
    """

    def __init__(self, bundles: Bundles, model: str | None = None, gateway_id: str | None = None) -> None:
        self._bundles = bundles
        self._model = model
        self._only = gateway_id
        self._gateways: dict[str, str] = {}
        """Gateway by source of its workers."""
        self._control: dict[str, str] = {}
        """Gateway by source of its control."""
        self._books: dict[str, RouteBook] = {}
        self._early: deque[Prediction] = deque()
        """Their route's control event was not read yet."""
        self._waiting: dict[str, _Asked] = {}
        self._ahead: dict[str, dict[str, Shadow]] = {}
        """Shadow events whose prediction was not read yet."""
        self._readers: dict[tuple[str, str, str | None], OutputReader] = {}
        self.pairs: dict[Pair, Comparison] = {}
        self.unanswered: dict[Pair, int] = {}
        """Requests that were to be shadowed and are not: still on their way, or the mirror was not there."""
        self.unread: dict[str, str] = {}
        """Why a version's bundle.toml was not used, by "model/version"."""

    def take(self, event: Event) -> None:
        """One event of the log, in any order."""
        match event:
            case Prediction(kind="done"):
                self._take_prediction(event)
            case Shadow(run=run) if run == LIVE:
                self._take_shadow(event)
            case Control() | EpochOpen():
                self._know(event.gateway_id)
                if isinstance(event, Control) and self._control.get(event.id[:16]) == event.gateway_id:
                    self._take_route(event, self._books[event.gateway_id])
            case _:
                pass

    def close(self) -> None:
        """The log is read to its end: what still waits is unanswered."""
        for event in self._early:
            self._expect(event, self._book_of(event) or RouteBook())
        self._early.clear()
        for asked in self._waiting.values():
            self._give_up(asked)
        self._waiting.clear()

    def class_names(self, pair: Pair) -> tuple[str, ...]:
        """Names of the classes as the bundle of the version that answered has them; empty where it has none."""
        for (model, version, tree), _ in self._readers.items():
            if (model, version) == (pair.model, pair.primary):
                settings = self._bundles.settings(model, version, tree)
                outputs = settings.outputs.values() if settings is not None else ()
                return next((output.classes for output in outputs if output.classes), ())
        return ()

    def _take_route(self, event: Control, book: RouteBook) -> None:
        if book.learn(event):
            early, self._early = self._early, deque()
            for prediction in early:
                self._take_prediction(prediction)

    def _take_prediction(self, event: Prediction) -> None:
        if event.route is None or event.model is None or self._model not in {None, event.model.name}:
            return
        book = self._book_of(event)
        if book is not None and book.knows(event):
            self._expect(event, book)
        elif book is not None or self._only is None or not self._books:
            # Nothing of the inputs is needed here.
            event.inputs = []
            self._early.append(event)
            if len(self._early) > WAITING_MAX:
                self._expect(self._early.popleft(), book or RouteBook())

    def _expect(self, event: Prediction, book: RouteBook) -> None:
        """Join it with what came before it; let it wait for the rest."""
        assert event.model is not None
        shadows = self._ahead.pop(event.id, {})
        waits_for = {*book.sampled(event), *shadows}
        if not waits_for:
            return
        facts = event.model
        asked = _Asked(
            facts.name, facts.version or "", facts.tree_sha256, event.rows, event.outputs, waits_for
        )
        self._waiting[event.id] = asked
        for shadow in shadows.values():
            self._join(asked, shadow)
        if len(self._waiting) > WAITING_MAX:
            self._give_up(self._waiting.pop(next(iter(self._waiting))))

    def _take_shadow(self, event: Shadow) -> None:
        asked = self._waiting.get(event.derived_from)
        if asked is None:
            self._ahead.setdefault(event.derived_from, {}).setdefault(event.version, event)
            if len(self._ahead) > WAITING_MAX:
                self._ahead.pop(next(iter(self._ahead)))
        else:
            self._join(asked, event)

    def _join(self, asked: _Asked, event: Shadow) -> None:
        if event.version not in asked.waits_for:
            # A double: told twice over a restart.
            return
        asked.waits_for.discard(event.version)
        if not asked.waits_for:
            self._waiting.pop(event.derived_from, None)
        pair = Pair(asked.model, asked.version, event.version)
        found = self.pairs.setdefault(pair, Comparison())
        if event.kind == "failed":
            found.add_failed(event.code or "unknown")
        elif event.kind == "skipped":
            found.add_skipped(event.code or "unknown")
        else:
            try:
                primary = self._judge(
                    asked.model, asked.version, asked.tree_sha256, asked.outputs, asked.rows
                )
                shadow = self._judge(asked.model, event.version, event.tree_sha256, event.outputs, asked.rows)
                found.add(event.derived_from, primary, shadow)
            except ValueError as exc:
                found.add_unjudged(str(exc))

    def _judge(
        self, model: str, version: str, tree_sha256: str | None, outputs: list[Tensor], rows: int
    ) -> Judged:
        key = (model, version, tree_sha256)
        if key not in self._readers:
            settings = self._bundles.settings(*key)
            if settings is None:
                self.unread[f"{model}/{version}"] = self._bundles.reason(*key) or ""
            self._readers[key] = OutputReader(settings or BundleSettings())
        return self._readers[key].judge(outputs, rows)

    def _give_up(self, asked: _Asked) -> None:
        for version in asked.waits_for:
            pair = Pair(asked.model, asked.version, version)
            self.unanswered[pair] = self.unanswered.get(pair, 0) + 1

    def _know(self, gateway_id: str) -> None:
        if gateway_id in self._books or self._only not in {None, gateway_id}:
            return
        if len(self._books) >= GATEWAYS_MAX:
            return
        self._books[gateway_id] = RouteBook()
        for index in range(_WORKERS):
            self._gateways[f"{source_of(gateway_id, 'worker', index):016x}"] = gateway_id
        for source in sources_of(gateway_id, "control"):
            self._control[f"{source:016x}"] = gateway_id

    def _book_of(self, event: Prediction) -> RouteBook | None:
        return self._books.get(self._gateways.get(event.id[:16], ""))


def shown(report: Report) -> Iterator[tuple[Pair, Comparison, int]]:
    """Every pair with its comparison and its unanswered requests, by model and version."""
    pairs = {*report.pairs, *report.unanswered}
    for pair in sorted(pairs, key=lambda p: (p.model, _number(p.primary), _number(p.shadow))):
        yield pair, report.pairs.get(pair, Comparison()), report.unanswered.get(pair, 0)


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdigit() and len(version) < _DIGITS_MAX else 0
