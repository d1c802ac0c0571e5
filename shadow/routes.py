"""Which versions shadow which predictions, as the log's control events tell. Mirror stage; pure.

control events -> **routes** -> mirror. A prediction names the revision of the route that it was sent by; what shadowed
that revision stands in the control event that made it. The two lie in different sources, so either may be read first.
"""

from __future__ import annotations

import msgspec

from gateway.audit.event import Control, Prediction
from gateway.audit.sampling import sampled_by
from shadow.documents import Document, documents_of

REVISIONS_KEPT = 64
"""A prediction of an older revision than so many is treated by the newest."""


class RouteBook(msgspec.Struct):
    """Shadows by model and revision: {version: sample_bp}, only those that are to see something.

    Plain data, so that a follower stores it together with its positions.
    """

    shadows: dict[str, dict[int, dict[str, int]]] = {}

    def learn(self, event: Control) -> set[str]:
        """Take up a control event; returns the models that have a revision not known before."""
        return {model for document in documents_of(event) if (model := self._take(document))}

    def knows(self, event: Prediction) -> bool:
        """Whether the revision that a prediction was sent by was read (or is too old to be told)."""
        assert event.route is not None and event.model is not None
        revisions = self.shadows.get(event.model.name)
        return revisions is not None and (
            event.route.revision in revisions or event.route.revision < min(revisions)
        )

    def assume(self, event: Prediction) -> None:
        """Treat a prediction's revision as the newest that is known, until its own control event comes."""
        assert event.route is not None and event.model is not None
        newest = self._newest(event.model.name)
        self.shadows.setdefault(event.model.name, {})[event.route.revision] = newest

    def sampled(self, event: Prediction) -> list[str]:
        """Versions that are to answer a prediction as shadows: not the one that answered it.

        Only requests that were drawn have a unit: pinned ones are outside of every comparison.
        """
        if event.route is None or event.model is None or event.route.unit_hash is None:
            return []
        revisions = self.shadows.get(event.model.name, {})
        found = revisions.get(event.route.revision)
        if found is None:
            found = self._newest(event.model.name)
        return sampled_by(int(event.route.unit_hash, 16), event.model.version or "", found.items())

    def newest_revision(self, model: str) -> int:
        """The newest revision of a model's route; 0 where none is known."""
        return max(self.shadows.get(model, {}), default=0)

    @property
    def wanted(self) -> set[tuple[str, str]]:
        """(model, version) of every shadow in the newest revisions."""
        return {(model, version) for model in self.shadows for version in self._newest(model)}

    def _newest(self, model: str) -> dict[str, int]:
        revisions = self.shadows.get(model)
        return revisions[max(revisions)] if revisions else {}

    def _take(self, document: Document) -> str | None:
        revisions = self.shadows.setdefault(document.model, {})
        found = document.shadows
        if revisions.get(document.revision) == found:
            return None
        revisions[document.revision] = found
        for old in sorted(revisions)[:-REVISIONS_KEPT]:
            del revisions[old]
        return document.model


def shadows_of(event: Control) -> list[tuple[str, set[str]]]:
    """Each model that a control event is about, and the versions that shadow it from then on."""
    return [(document.model, set(document.shadows)) for document in documents_of(event)]
