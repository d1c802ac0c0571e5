"""Idempotency: a change that is asked for twice is made once. Pure.

admin API (what was asked, as `Asked`) -> engine -> **idempotency**: made already? The key stands in the control event
and in the ledger, so the answer holds after a kill. A key counts for one principal, for a day, the newest 256 of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.errors import IdempotencyMismatch

KEPT_MAX = 256
KEPT_NS = 86_400 * 1_000_000_000
KEY_CHARS_MAX = 128
DIGEST_CHARS = 32
"""Of the request's digest so much is kept: 128 bits."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A request with an idempotency key, as made: what its answer can be told from again."""

    digest: str
    kind: str
    model: str | None
    revision: int | None
    at_ns: int


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """How a change was asked for, beside who and why.

    `digest` is of all that makes the request what it is (method, address, revision, body), in hex.
    """

    key: str | None = None
    """The client's idempotency key."""
    digest: str = ""
    via: dict[str, str] = {}
    """Where it came from, for the log: `address`, `token`, whatever else tells it apart."""
    automaton: bool = False
    """No person decided it: it keeps to the route's bounds."""


BY_HAND = Asked()


def made_before(known: Mapping[str, Done], by: str, asked: Asked) -> Done | None:
    """What this very request made when it was asked first; None when it is new or has no key.

    Args:
        known: the ledger's `done`.

    Raises:
        IdempotencyMismatch: the key was used for another request.
    """
    if asked.key is None:
        return None
    done = known.get(_name(by, asked.key))
    if done is not None and done.digest != asked.digest[:DIGEST_CHARS]:
        what = done.kind if done.model is None else f"{done.kind} of {done.model}"
        msg = f"idempotency-key {asked.key!r} was used for another request ({what}); use a new one for each change"
        raise IdempotencyMismatch(msg)
    return done


def remembered(known: Mapping[str, Done], by: str, key: str, done: Done) -> dict[str, Done]:
    """The ledger's `done` with a request that was made; what is old or too much is forgotten."""
    name = _name(by, key)
    young = {k: d for k, d in known.items() if d.at_ns > done.at_ns - KEPT_NS and k != name}
    return dict([*young.items(), (name, done)][-KEPT_MAX:])


def _name(by: str, key: str) -> str:
    return f"{by} {key}"
