"""Request bodies of the admin API. Unknown fields are refused: a misspelt one must not be ignored."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.routing import NAME_PATTERN, VERSION_PATTERN, Variant

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
VersionText = Annotated[str, Meta(pattern=VERSION_PATTERN)]
Share = Annotated[int, Meta(ge=0, le=10_000)]


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: str = ""


class ReasonBody(_Body):
    """Only why."""


class ShiftBody(_Body):
    """Weights by canary name, in basis points."""

    weights_bp: dict[str, int]


class PromoteBody(_Body):
    """Which canary."""

    variant: str


class RollbackBody(_Body):
    """To which revision; the one before when absent."""

    to_revision: int | None = None


class LoadBody(_Body):
    """Which version; the newest when absent."""

    version: VersionText | None = None


class VariantBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A variant as a client gives it."""

    name: Name
    version: VersionText
    role: str
    weight_bp: Share = 0
    sample_bp: Share = 0

    def variant(self) -> Variant:
        """The variant, its buckets still to be worked out."""
        return Variant(
            name=self.name,
            version=self.version,
            role=self.role,
            weight_bp=self.weight_bp,
            sample_bp=self.sample_bp,
        )


class SetBody(_Body):
    """All variants of a route."""

    variants: tuple[VariantBody, ...]
