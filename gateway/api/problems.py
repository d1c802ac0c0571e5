"""The one table from error to HTTP status, and the one shape of an error's body.

`{"error": text, "code": snake_case}`, content type exactly `application/json`; revision conflicts add where the
route stands now. What is not in the tree is 500 without details.
"""

from __future__ import annotations

import random
from collections import Counter

import orjson

from gateway import errors
from gateway.errors import GatewayError, RevisionConflict

STATUS: dict[type[GatewayError], int] = {
    errors.InvalidRequest: 400,
    errors.BodyTooLarge: 413,
    errors.HeadTooLarge: 431,
    errors.UrlTooLong: 414,
    errors.RequestTimeout: 408,
    errors.UnsupportedCoding: 415,
    errors.NotFound: 404,
    errors.UnknownModel: 404,
    errors.MethodNotAllowed: 405,
    errors.ModelNotReady: 503,
    errors.ModelStopped: 503,
    errors.Overloaded: 503,
    errors.RateLimited: 429,
    errors.DeadlineExceeded: 503,
    errors.RequestCancelled: 499,
    errors.InferenceFailed: 500,
    errors.AuditUnavailable: 503,
    errors.AuditTimeout: 503,
    errors.ReasonRequired: 400,
    errors.ChangeInvalid: 400,
    errors.PreconditionRequired: 428,
    errors.RevisionConflict: 412,
    errors.StateConflict: 409,
    errors.LoadFailed: 422,
    errors.IdempotencyMismatch: 422,
    errors.ControlUnavailable: 503,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.TokensUnusable: 409,
}
"""A class without a row takes its parent's. One with neither never answers a request: 500 without details."""

INTERNAL = (500, b'{"error":"internal error","code":"internal"}')

answered: Counter[str] = Counter()
"""Errors that the data plane answered in this process, by code; `gateway.vitals` tells them."""

RETRY_AFTER_S = (1, 3)
"""Retry-After of refusals that may be retried, jittered so that clients do not come back together."""


def row_of(kind: type[BaseException]) -> int | None:
    """The status that the table has for a class or the nearest of its parents; None: there is none."""
    return next((STATUS[parent] for parent in kind.__mro__ if parent in STATUS), None)


def status_of(exc: BaseException) -> int:
    """The status of an error."""
    return row_of(type(exc)) or 500


def problem(exc: BaseException) -> tuple[int, bytes]:
    """Status and body of an error."""
    status = row_of(type(exc))
    if status is None or not isinstance(exc, GatewayError):
        return INTERNAL
    # What a message quotes of a request may hold half a surrogate pair, which no UTF-8 has.
    text = str(exc).encode(errors="backslashreplace").decode()
    content: dict[str, object] = {"error": text, "code": exc.code}
    if isinstance(exc, RevisionConflict):
        content["revision"] = exc.revision
        content["event"] = exc.event
        content["changed"] = exc.changed
    return status, orjson.dumps(content)


def raised_in(callback: BaseException, otherwise: GatewayError) -> GatewayError:
    """What a parser's callback raised, `otherwise` where it is no error of ours.

    Without the frames that it went through: they lead to the connection and, each by the one that called it, to whoever
    holds the error, and such a circle waits for the garbage collector.
    """
    cause = callback.__context__ if callback.__context__ is not None else callback.__cause__
    if cause is None:
        return otherwise
    cause.__traceback__ = None
    return cause if isinstance(cause, GatewayError) else otherwise


def retry_after_s(exc: BaseException) -> int | None:
    """When to come again, jittered; None where that does not help."""
    if isinstance(exc, errors.RateLimited):
        # Not before there is something to be had, and not all at once then.
        return exc.wait_s + random.randint(0, max(RETRY_AFTER_S[1] - 1, exc.wait_s))  # noqa: S311
    if isinstance(exc, GatewayError) and exc.retryable and row_of(type(exc)) == 503:
        return random.randint(*RETRY_AFTER_S)  # noqa: S311
    return None


def reply_of(exc: BaseException) -> tuple[int, bytes, bytes]:
    """Status, header fields and body of an error, as the doors write them."""
    status, body = problem(exc)
    answered[exc.code if isinstance(exc, GatewayError) else GatewayError.code] += 1
    fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    wait_s = retry_after_s(exc)
    if wait_s is not None:
        fields += b"retry-after: %d\r\n" % wait_s
    if isinstance(exc, errors.BodyTooLarge):
        # What is left of the body is not read.
        fields += b"connection: close\r\n"
    if isinstance(exc, errors.Unauthorized):
        fields += b"www-authenticate: Bearer\r\n"
    if isinstance(exc, errors.UnsupportedCoding):
        fields += b"accept-encoding: gzip, deflate\r\n"
    return status, fields, body
