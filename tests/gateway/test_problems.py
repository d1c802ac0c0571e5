"""The one table from error to HTTP status, and the shape of what is said."""

from __future__ import annotations

import orjson
import pytest

from docs.generate import error_kinds
from gateway import errors
from gateway.api.problems import RETRY_AFTER_S, STATUS, problem, reply_of, status_of

BY_CODE = {
    "input_out_of_profile": 400,
    "model_stopped": 503,
    "body_too_large": 413,
    "head_too_large": 431,
    "url_too_long": 414,
    "request_timeout": 408,
    "unsupported_coding": 415,
    "unknown_model": 404,
    "method_not_allowed": 405,
    "model_not_ready": 503,
    "overloaded": 503,
    "rate_limited": 429,
    "deadline_exceeded": 503,
    "cancelled": 499,
    "inference_failed": 500,
    "audit_timeout": 503,
    "reason_required": 400,
    "change_invalid": 400,
    "precondition_required": 428,
    "revision_conflict": 412,
    "state_conflict": 409,
    "evidence_stale": 409,
    "out_of_bounds": 409,
    "idempotency_mismatch": 422,
    "load_failed": 422,
    "control_unavailable": 503,
    "tokens_unusable": 409,
    "unauthorized": 401,
    "forbidden": 403,
}
"""What clients may rely on."""

ENDS_A_START = {"state_in_use", "state_format_newer", "snapshot_corrupt"}


def made(kind: type[errors.GatewayError]) -> errors.GatewayError:
    """An instance with a text."""
    if kind is errors.RevisionConflict:
        return errors.RevisionConflict("moved on", revision=13, event="e-42")
    return kind("said")


def leaves() -> list[type[errors.GatewayError]]:
    """Classes without subclasses."""
    return [kind for kind in error_kinds() if not kind.__subclasses__()]


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.code)
def test_every_leaf_has_its_status(kind: type[errors.GatewayError]) -> None:
    """What can reach a client has a status in the table; the others never leave a process."""
    exc = made(kind)
    if kind.code in BY_CODE:
        assert status_of(exc) == BY_CODE[kind.code]
    else:
        assert kind.code in ENDS_A_START or issubclass(kind, errors.LogError)
        assert status_of(exc) == 500


@pytest.mark.parametrize("kind", STATUS, ids=lambda kind: kind.code)
def test_one_shape(kind: type[errors.GatewayError]) -> None:
    """Text and code, and for a conflict where the route stands and who moved it."""
    status, body = problem(made(kind))
    content = orjson.loads(body)
    assert (status, content["code"]) == (STATUS[kind], kind.code)
    assert content["error"]
    extra = {"revision", "event", "changed"} if kind is errors.RevisionConflict else set()
    assert set(content) == {"error", "code"} | extra


def test_a_new_subclass_takes_its_parents_status() -> None:
    """A class without a row of its own is not a 500."""

    class Stale(errors.StateConflict):
        """Only here."""

    assert status_of(Stale("x")) == 409


@pytest.mark.parametrize("exc", [ValueError("/etc/passwd"), errors.GatewayError("/srv/state"), KeyError("k")])
def test_what_is_not_meant_says_nothing(exc: Exception) -> None:
    """An accident gives no details away."""
    assert problem(exc) == (500, b'{"error":"internal error","code":"internal"}')


def fields_of(exc: Exception) -> dict[bytes, bytes]:
    """Header fields of a reply, by name."""
    _, fields, body = reply_of(exc)
    found = dict(line.split(b": ", 1) for line in fields.split(b"\r\n") if line)
    assert int(found[b"content-length"]) == len(body)
    assert found[b"content-type"] == b"application/json"
    return found


def test_retry_after_only_where_it_helps() -> None:
    """What may be retried says when, jittered; what may not says nothing of it."""
    seen = {int(fields_of(errors.Overloaded("x"))[b"retry-after"]) for _ in range(100)}
    assert seen <= set(range(RETRY_AFTER_S[0], RETRY_AFTER_S[1] + 1))
    assert len(seen) > 1
    assert b"retry-after" not in fields_of(errors.InvalidRequest("x"))
    assert b"retry-after" not in fields_of(errors.InferenceFailed("x"))


def test_unsupported_coding_names_what_is_decoded() -> None:
    """415 comes with Accept-Encoding."""
    assert fields_of(errors.UnsupportedCoding("x"))[b"accept-encoding"] == b"gzip, deflate"
