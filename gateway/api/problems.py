"""The one table from error to HTTP status, and the one shape of an error's body.

`{"error": text, "code": snake_case}`, content type exactly `application/json`; revision conflicts add where the
route stands now. What is not in the tree is 500 without details.
"""

from __future__ import annotations

import random

import orjson

from gateway import errors
from gateway.errors import GatewayError, RevisionConflict

STATUS: dict[type[GatewayError], int] = {
    errors.InvalidRequest: 400,
    errors.BodyTooLarge: 413,
    errors.UnsupportedCoding: 415,
    errors.NotFound: 404,
    errors.UnknownModel: 404,
    errors.MethodNotAllowed: 405,
    errors.ModelNotReady: 503,
    errors.Overloaded: 503,
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
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
}
"""A class without a row takes its parent's; the root's is 500."""

RETRY_AFTER_S = (1, 3)
"""Retry-After of refusals that may be retried, jittered so that clients do not come back together."""


def status_of(exc: BaseException) -> int:
    """The status of an error."""
    for kind in type(exc).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def problem(exc: BaseException) -> tuple[int, bytes]:
    """Status and body of an error."""
    status = status_of(exc)
    if not isinstance(exc, GatewayError) or (status == 500 and exc.code == "internal"):
        return 500, b'{"error":"internal error","code":"internal"}'
    content: dict[str, object] = {"error": str(exc), "code": exc.code}
    if isinstance(exc, RevisionConflict):
        content["revision"] = exc.revision
        content["event"] = exc.event
    return status, orjson.dumps(content)


def reply_of(exc: BaseException) -> tuple[int, bytes, bytes]:
    """Status, header fields and body of an error, as the doors write them."""
    status, body = problem(exc)
    fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    if status == 503 and isinstance(exc, GatewayError) and exc.retryable:
        fields += b"retry-after: %d\r\n" % random.randint(*RETRY_AFTER_S)  # noqa: S311
    if isinstance(exc, errors.UnsupportedCoding):
        fields += b"accept-encoding: gzip, deflate\r\n"
    return status, fields, body
