"""Replies: from an appended frame to each request's status, header fields and body.

delivery (append) -> **replies** -> doors. Only here, since a reply carries the number that the append drew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from struct import pack
from typing import NamedTuple

from gateway.batching import Batch, Inference
from gateway.errors import AuditUnavailable, GatewayError
from gateway.version import Version

log = logging.getLogger("tidegate.worker")

Problem = Callable[[GatewayError], tuple[int, bytes, bytes]]
"""An error to status, fields and body: the one table of api.problems."""
UNRECORDED = b"x-tidegate-audit: none\r\n"
"""Of a reply that waited for no record: a refusal, or one that is told as an error since it has none."""
Reply = tuple[Inference, int, bytes, bytes]
"""A request, its status, header fields and body."""


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


def reply_all(
    appended: Appended, prefix: bytes, problem: Problem, late: list[Reply] | None, left: list[bool]
) -> None:
    """Answer each request that still waits.

    Args:
        late: takes the replies that wait for the disk instead; None when none does.
        left: filled with whether each request, in order, still waits: those that are not in it do, should this raise.
    """
    error = appended.error
    if appended.seq is None:
        error = AuditUnavailable("the audit log cannot be written at present; try again")
    if error is not None:
        _reply_error(appended, prefix, (error, problem), late, left)
        return
    version, batch, part, seq, level, row, texts, _ = appended
    # The ids of a frame's requests follow each other: all are made with one call.
    digits = pack(f">{len(part)}Q", *range(seq, seq + len(part))).hex().encode()  # type: ignore[arg-type,operator]
    fields_of, id_of = _templates(level, prefix)
    if late is None and _reply_rows(appended, prefix, digits, left):
        return
    left += [True] * (len(part) - len(left))
    last_rows, last_wanted, literals = -1, None, []
    at = 0
    simple = False
    column: list[bytes] = []
    join = b"".join
    for i, inference in enumerate(part):
        rows = inference.rows
        number = digits[at : at + 16]
        at += 16
        sink = inference.sink
        if not left[i] or sink.disconnected:
            row += rows
            continue
        id_json = inference.id_json or id_of % number
        if inference.form is None:
            if rows != last_rows or inference.wanted is not last_wanted:
                last_rows, last_wanted = rows, inference.wanted
                literals = version.encoder.literals(rows, batch.outputs, last_wanted)
                simple = rows == 1 and len(literals) == 3 and version.batchable
                if simple:
                    column = texts[0 if last_wanted is None else last_wanted[0]]
            if simple:
                body = join((literals[0], id_json, literals[1], column[row], literals[2]))
            else:
                body = version.json_body(inference, id_json, literals, texts, row)
            status, fields = 200, fields_of % (number, len(body))
        else:
            status, fields, body = _formed(appended, inference, id_json, row, problem)
            fields += b"x-tidegate-audit: %b\r\nx-prediction-id: %b%b\r\n" % (level.encode(), prefix, number)
        row += rows
        if late is not None and inference.audit_level == "fsync":
            late.append((inference, status, fields, body))
        else:
            sink.reply(status, fields, body)
        left[i] = False


def _reply_rows(appended: Appended, prefix: bytes, digits: bytes, left: list[bool]) -> bool:
    """Answer the requests of one row for a model's one output, where doors take a reply in one piece.

    Adds to `left` for each request whether it still waits; returns whether none does.
    """
    version, batch, part, _, level, row, texts, _ = appended
    if batch.rows != len(batch.inferences) or len(texts) != 1 or not version.batchable:
        return False
    fields, length, own_id = _pieces(level, prefix)
    head, middle, tail = version.encoder.literals(1, batch.outputs, None)
    given, own = b"\r\n" + head, b"\r\n" + head + own_id
    behind = b'"' + middle
    given_bytes = len(head) + len(middle) + len(tail)
    own_bytes = given_bytes + len(own_id) + 17
    column, join = texts[0], b"".join
    waiting = False
    at = 0
    door, takes = None, False
    for inference in part:
        sink = inference.sink
        if sink.__class__ is not door:
            door = sink.__class__
            takes = hasattr(door, "reply_whole")
        waits = True
        if takes and inference.form is None and inference.wanted is None and not sink.disconnected:
            number, text, id_json = digits[at : at + 16], column[row], inference.id_json
            if id_json is None:
                size = own_bytes + len(text)
                pieces = (fields, number, length, b"%d\r\n" % size, own, number, behind, text, tail)
            else:
                size = given_bytes + len(id_json) + len(text)
                pieces = (fields, number, length, b"%d\r\n" % size, given, id_json, middle, text, tail)
            waits = not sink.reply_whole(join(pieces))
        left.append(waits)
        waiting = waiting or waits
        at += 16
        row += 1
    return not waiting


@lru_cache(maxsize=16)
def _pieces(level: str, prefix: bytes) -> tuple[bytes, bytes, bytes]:
    """The same fields as `_templates`', in pieces: up to the number, behind it, and the start of an id of ours."""
    fields = b"content-type: application/json\r\nx-tidegate-audit: %b\r\nx-prediction-id: %b"
    return fields % (level.encode(), prefix), b"\r\ncontent-length: ", b'"' + prefix


@lru_cache(maxsize=16)
def _templates(level: str, prefix: bytes) -> tuple[bytes, bytes]:
    """Header fields of a common reply, for its number and length; its id where the client gave none."""
    fields = (
        b"content-type: application/json\r\nx-tidegate-audit: %b\r\nx-prediction-id: %b%%b\r\n"
        b"content-length: %%d\r\n"
    )
    return fields % (level.encode(), prefix), b'"%b%%b"' % prefix


def _formed(
    appended: Appended, inference: Inference, id_json: bytes, row0: int, problem: Problem
) -> tuple[int, bytes, bytes]:
    """A reply that has a form of its own; one that cannot be made fails no batch mate."""
    version = appended.version
    try:
        body, fields = inference.form.body(version.encoder, inference, id_json, appended.batch.outputs, row0)
    except GatewayError as exc:
        return problem(exc)
    except Exception:
        log.exception("reply_not_made", extra={"model": version.model})
        return problem(GatewayError("internal error"))
    return 200, fields, body


def _reply_error(
    appended: Appended,
    prefix: bytes,
    told: tuple[GatewayError, Problem],
    late: list[Reply] | None,
    left: list[bool],
) -> None:
    error, problem = told
    for i, inference in enumerate(appended.part):
        if inference.sink.disconnected:
            left.append(False)
            continue
        status, fields, body = problem(error)
        if appended.seq is None:
            inference.sink.reply(status, fields + UNRECORDED, body)
            left.append(False)
            continue
        fields += b"x-tidegate-audit: %b\r\n" % appended.level.encode()
        fields += b"x-prediction-id: %b%016x\r\n" % (prefix, appended.seq + i)
        if late is not None and inference.audit_level == "fsync":
            late.append((inference, status, fields, body))
        else:
            inference.sink.reply(status, fields, body)
        left.append(False)
