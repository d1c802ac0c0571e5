"""What the admin API answers: JSON, a revision as ETag. Its errors are `gateway.api.outgoing`'s."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response


def json_answer(content: Any, status: int = 200, etag: int | None = None) -> Response:
    """Plain data as JSON; `etag` is a revision."""
    response = Response(msgspec.json.encode(content), status_code=status)
    response.headers["content-type"] = "application/json"
    if etag is not None:
        response.headers["etag"] = f'"{etag}"'
    return response
