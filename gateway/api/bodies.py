"""What requests of the admin API carry, and how it is read. Unknown fields are refused: a misspelt one must not be
ignored."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request

from gateway.control.gates import Evidence, Int64
from gateway.control.idempotency import KEY_CHARS_MAX, Asked
from gateway.errors import BodyTooLarge, InvalidRequest, PreconditionRequired
from gateway.routing import NAME_PATTERN, VERSION_PATTERN, Bounds, Variant

BODY_MAX_BYTES = 1_048_576
REVISION_DIGITS = 18

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
VersionText = Annotated[str, Meta(pattern=VERSION_PATTERN)]
Share = Annotated[int, Meta(ge=0, le=10_000)]
Reason = Annotated[str, Meta(max_length=2000)]
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Those that turn the direction of what follows among them: such a line says something else than is read."""
VARIANTS_MAX = 64
"""An event holds a route twice, and must fit into an eighth of control's ring."""


SCOPES_MAX = 256
BOUNDS = ("max_canary_bp", "max_step_bp", "changes_per_h", "dwell_s")
PAGE_MAX = 1000


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: Reason = ""

    def __post_init__(self) -> None:
        found = _CONTROL.search(self.reason.strip())
        if found is not None:
            # It is shown on terminals, and kept for ever.
            msg = f"reason holds the control character {found[0]!r}; expected one line of plain text"
            raise ValueError(msg)


class ReasonBody(_Body):
    """Only why."""


class ShiftBody(_Body):
    """Weights by canary name, in basis points."""

    weights_bp: dict[str, Int64]


class PromoteBody(_Body):
    """Which canary."""

    variant: str


class RollbackBody(_Body):
    """A canary's traffic to the primary, or the route to a revision; neither: to the newest that differs."""

    to_revision: Int64 | None = None
    variant: str | None = None
    evidence: Evidence | None = None


class RearmBody(_Body):
    """Which latched version."""

    version: VersionText


class LoadBody(_Body):
    """Which version; the newest when absent. `whole`: all of the model's, and the answer waits until it is so."""

    version: VersionText | None = None
    whole: bool = False


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


class BoundsBody(_Body):
    """How far automata may move a route; what is not named is no bound, and nothing at all takes bounds away."""

    max_canary_bp: Share | None = None
    max_step_bp: Share | None = None
    changes_per_h: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    dwell_s: Annotated[float, Meta(ge=0, le=31_536_000)] | None = None

    def bounds(self) -> Bounds | None:
        """Them, if there are any."""
        named = {name: value for name in BOUNDS if (value := getattr(self, name)) is not None}
        return Bounds(**named) if named else None


class TokenBody(_Body):
    """Whose token, what it may, until when (Unix ns; absent: for good)."""

    principal: Name
    scopes: Annotated[tuple[str, ...], Meta(min_length=1, max_length=SCOPES_MAX)]
    expires_ns: Int64 | None = None
    automaton: bool = False


class SetBody(_Body):
    """All variants of a route."""

    variants: Annotated[tuple[VariantBody, ...], Meta(max_length=VARIANTS_MAX)]


def if_match(request: Request) -> int:
    """The revision that a change was decided on.

    Raises:
        PreconditionRequired: no If-Match.
        InvalidRequest: it is no revision.
    """
    text = request.headers.get("if-match")
    if text is None:
        msg = 'a change needs If-Match with the revision it was decided on, as in If-Match: "12"'
        raise PreconditionRequired(msg)
    digits = text.strip().removeprefix("W/").strip('"')
    if not (digits.isascii() and digits.isdigit() and len(digits) <= REVISION_DIGITS):
        msg = f"If-Match is {text[:40]!r}; expected a revision number"
        raise InvalidRequest(msg)
    return int(digits)


def is_dry_run(request: Request) -> bool:
    """Whether the change is only to be shown. What is not understood is refused: a slip must not change traffic.

    Raises:
        InvalidRequest: another parameter, or a value that says neither yes nor no.
    """
    asked = request.query_params.multi_items()
    if not asked:
        return False
    (name, value), *more = asked
    text = value.lower()
    if name != "dry_run" or more or text not in {"", "true", "1", "yes", "false", "0", "no"}:
        msg = f"query {request.url.query[:80]!r}: a change takes dry_run=true or dry_run=false, once, and no other"
        raise InvalidRequest(msg)
    return text not in {"false", "0", "no"}


def page_of(request: Request) -> tuple[int, int | None]:
    """Which part of a history is asked for: so many entries, before which revision.

    Raises:
        InvalidRequest: another parameter, twice the same, or a value that is no such number.
    """
    asked = request.query_params.multi_items()
    found = dict(asked)
    fits = {"limit": PAGE_MAX, "before": 10**REVISION_DIGITS}
    for name, value in asked:
        is_number = value.isascii() and value.isdigit() and len(value) <= REVISION_DIGITS
        if name not in fits or len(found) != len(asked) or not is_number or not 1 <= int(value) <= fits[name]:
            msg = f"query {request.url.query[:80]!r}: expected limit=1 to {PAGE_MAX}, before=REVISION, each once"
            raise InvalidRequest(msg)
    return int(found.get("limit", 100)), int(found["before"]) if "before" in found else None


def asked_of(request: Request) -> Asked:
    """How a change was asked for: its key, what the request is, where it came from. After `read_body`.

    Raises:
        InvalidRequest: a key that is none.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= KEY_CHARS_MAX and key.isascii() and key.isprintable()):
        msg = f"idempotency-key is {key[:40]!r}; expected 1 to {KEY_CHARS_MAX} printable ASCII characters"
        raise InvalidRequest(msg)
    digest = hashlib.sha256()
    head = (request.method, request.url.path, request.url.query, request.headers.get("if-match", ""))
    for part in (*(text.encode() for text in head), request.state.content):
        digest.update(len(part).to_bytes(8, "big") + part)
    principal = request.state.principal
    via = {"address": request.client.host if request.client else "", "token": principal.token_id}
    via = {name: value for name, value in via.items() if value}
    return Asked(key=key, digest=digest.hexdigest(), via=via, automaton=principal.automaton)


async def read_body(request: Request, kind: type[Any], *, optional: bool = False) -> Any:
    """The body as `kind`; `optional` takes none for an empty one.

    Raises:
        BodyTooLarge: over 1 MiB.
        InvalidRequest: not JSON, or not of that form.
    """
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > BODY_MAX_BYTES:
            msg = f"body of more than {BODY_MAX_BYTES} bytes"
            raise BodyTooLarge(msg)
    request.state.content = content
    if optional and not content:
        return kind()
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        msg = f"request body: {exc}"
        raise InvalidRequest(msg) from exc
