"""What the admin API answers: JSON, a revision as ETag, and errors in our one shape."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from gateway.api.problems import problem, retry_after_s


def json_answer(content: Any, status: int = 200, etag: int | None = None) -> Response:
    """Plain data as JSON; `etag` is a revision."""
    response = Response(msgspec.json.encode(content), status_code=status)
    response.headers["content-type"] = "application/json"
    if etag is not None:
        response.headers["etag"] = f'"{etag}"'
    return response


def problem_answer(exc: Exception) -> Response:
    """An error, with when to come again."""
    status, body = problem(exc)
    response = Response(body, status_code=status)
    response.headers["content-type"] = "application/json"
    wait_s = retry_after_s(exc)
    if wait_s is not None:
        response.headers["retry-after"] = str(wait_s)
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response
