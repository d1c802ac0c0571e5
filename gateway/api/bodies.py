"""What requests of the admin API carry, and how it is read. Unknown fields are refused: a misspelt one must not be
ignored."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request

from gateway.control.gates import Evidence, Int64
from gateway.errors import BodyTooLarge, Forbidden, InvalidRequest, PreconditionRequired
from gateway.routing import NAME_PATTERN, VERSION_PATTERN, Variant

BODY_MAX_BYTES = 1_048_576
REVISION_DIGITS = 18
LOOPBACK = frozenset(("127.0.0.1", "localhost", "[::1]"))

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
VersionText = Annotated[str, Meta(pattern=VERSION_PATTERN)]
Share = Annotated[int, Meta(ge=0, le=10_000)]
Reason = Annotated[str, Meta(max_length=2000)]
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
VARIANTS_MAX = 64
"""An event holds a route twice, and must fit into an eighth of control's ring."""


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


class SetBody(_Body):
    """All variants of a route."""

    variants: Annotated[tuple[VariantBody, ...], Meta(max_length=VARIANTS_MAX)]


def check_host(request: Request) -> None:
    """Refuse names that are not loopback, and pages of other origins.

    Raises:
        Forbidden: says which.
    """
    host = request.headers.get("host", "").rsplit(":", 1)[0] or request.headers.get("host", "")
    if host not in LOOPBACK and request.headers.get("host") not in LOOPBACK:
        msg = f"the admin listener answers to loopback names only, not to {host[:100]!r}"
        raise Forbidden(msg)
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("//")[2] != request.headers.get("host"):
        msg = "requests from web pages of other origins are refused"
        raise Forbidden(msg)


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
    if optional and not content:
        return kind()
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        msg = f"request body: {exc}"
        raise InvalidRequest(msg) from exc
