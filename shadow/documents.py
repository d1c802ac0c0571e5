"""Routes as control events leave them, for whoever reads the log: one reading for watch and mirror. Pure.

control events -> **documents** -> rollouts, routes. A control event carries the whole route that it leaves. What later
kinds hold beside it is ignored, and what is no route is none; nothing here raises on what another wrote.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.audit.event import Control


class Arm(msgspec.Struct, frozen=True, omit_defaults=True):
    """A variant in one revision of a route."""

    name: str
    version: str
    role: str
    weight_bp: int = 0
    sample_bp: int = 0


class Document(msgspec.Struct, frozen=True):
    """What readers of the log need of one revision of a route; it has a primary."""

    model: str
    revision: int
    arms: tuple[Arm, ...]
    latched: tuple[str, ...] = ()

    @property
    def primary(self) -> Arm:
        """The one primary."""
        return next(arm for arm in self.arms if arm.role == "primary")

    @property
    def canaries(self) -> tuple[Arm, ...]:
        """Canaries with traffic."""
        return tuple(arm for arm in self.arms if arm.role == "canary" and arm.weight_bp)

    @property
    def shadows(self) -> dict[str, int]:
        """Share by version of the shadows that are to see something."""
        found: dict[str, int] = {}
        for arm in self.arms:
            if arm.role == "shadow" and arm.sample_bp > 0:
                found[arm.version] = max(found.get(arm.version, 0), arm.sample_bp)
        return found


def documents_of(event: Control) -> list[Document]:
    """The routes that a control event leaves; events about other things leave none."""
    if event.after is None:
        return []
    found = event.after.values() if event.kind == "routes" else (event.after,)
    documents = [_document(one) for one in found if isinstance(one, dict) and "variants" in one]
    return [document for document in documents if document is not None]


def _document(content: dict[str, Any]) -> Document | None:
    try:
        arms = tuple(
            Arm(
                name=str(variant["name"]),
                version=str(variant["version"]),
                role=str(variant["role"]),
                weight_bp=int(variant.get("weight_bp", 0)),
                sample_bp=int(variant.get("sample_bp", 0)),
            )
            for variant in content["variants"]
        )
        if not any(arm.role == "primary" for arm in arms):
            return None
        latched = tuple(str(version) for version in content.get("latched", ()))
        return Document(str(content["model"]), int(content["revision"]), arms, latched)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
