"""Sampling: which units fall into a share of all. Routing draws them, recording and the mirror ask the same. Pure.

One definition, since recording keeps whole what a shadow will ask for, and must not guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

TOTAL_BP = 10_000


def in_sample(unit: int, sample_bp: int) -> bool:
    """Whether a unit falls into a share of all units; the same everywhere, and independent of the variant drawn.

    The variant is drawn from the unit itself; hashed again, a shadow sees a like share of every variant.
    Cost: about a microsecond.
    """
    digest = blake2b(unit.to_bytes(8, "big"), digest_size=8, person=b"shadow").digest()
    return int.from_bytes(digest, "big") % TOTAL_BP < sample_bp


def sampled_by(unit: int | None, answered: str, shadows: Iterable[tuple[str, int]]) -> list[str]:
    """Versions that are to answer a request as shadows: not the one that answered it.

    Args:
        unit: the request's; None where it was not drawn, which is outside of every comparison.
        shadows: (version, sample_bp) of the route that the request was sent by.
    """
    if unit is None:
        return []
    return [version for version, bp in shadows if version != answered and in_sample(unit, bp)]
