"""Replies: from an appended frame to each request's status, header fields and body.

core (append) -> **replies** -> doors. Only here, since a reply carries the number that the append drew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from struct import pack
from typing import NamedTuple

from gateway.batching import Batch, Inference
from gateway.errors import AuditUnavailable, GatewayError
from gateway.version import Version

log = logging.getLogger("tidegate.worker")

Problem = Callable[[GatewayError], tuple[int, bytes, bytes]]
"""An error to status, fields and body: the one table of api.problems."""


class Appended(NamedTuple):
    """One frame's requests and how they stand in the log.

    `seq` is the first number, None when the record could not be kept and nothing may leave; `row0` is the first
    request's row in the run's outputs.
    """

    version: Version
    batch: Batch
    part: list[Inference]
    seq: int | None
    level: str
    row0: int
    texts: list[list[bytes]]
    error: GatewayError | None


def replies(
    appended: Appended, prefix: bytes, problem: Problem
) -> Iterator[tuple[Inference, int, bytes, bytes]]:
    """Each request that still waits: itself, status, header fields, body."""
    version, batch, part, seq, level, row, texts, error = appended
    if seq is None:
        error = AuditUnavailable("the audit log cannot be written at present; try again")
        seq = -1
    last_rows, last_wanted, literals = -1, None, []
    plain = b"content-type: application/json\r\nx-tidegate-audit: %b\r\nx-prediction-id: " % level.encode()
    # The ids of a frame's requests follow each other: all are made with one call.
    first = max(seq, 0)
    digits = pack(f">{len(part)}Q", *range(first, first + len(part))).hex().encode()
    at = 0
    for inference in part:
        rows = inference.rows
        if not inference.sink.disconnected:
            pid = prefix + digits[at : at + 16] if seq >= 0 else b""
            if error is not None:
                status, fields, body = problem(error)
                if pid:
                    fields += b"x-prediction-id: " + pid + b"\r\n"
                yield inference, status, fields, body
            elif inference.form is None:
                if rows != last_rows or inference.wanted is not last_wanted:
                    last_rows, last_wanted = rows, inference.wanted
                    literals = version.encoder.literals(rows, batch.outputs, last_wanted)
                body = version.json_body(inference, inference.id_json or b'"%b"' % pid, literals, texts, row)
                fields = b"%b%b\r\ncontent-length: %d\r\n" % (plain, pid, len(body))
                yield inference, 200, fields, body
            else:
                yield _formed(appended, inference, pid, row, problem)
        row += rows
        at += 16


def _formed(
    appended: Appended, inference: Inference, pid: bytes, row0: int, problem: Problem
) -> tuple[Inference, int, bytes, bytes]:
    """A reply that has a form of its own; one that cannot be made fails no batch mate."""
    version, level = appended.version, appended.level.encode()
    id_json = inference.id_json or b'"%b"' % pid
    try:
        body, fields = inference.form.body(version.encoder, inference, id_json, appended.batch.outputs, row0)
        status = 200
    except Exception as exc:
        log.exception("reply_not_made", extra={"model": version.model})
        status, fields, body = problem(
            exc if isinstance(exc, GatewayError) else GatewayError("internal error")
        )
        return inference, status, fields + b"x-prediction-id: " + pid + b"\r\n", body
    fields += b"x-tidegate-audit: %b\r\nx-prediction-id: %b\r\n" % (level, pid)
    return inference, status, fields, body
