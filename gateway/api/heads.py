"""From a request's head to the core's `Head`; one reading of it for both doors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from random import getrandbits
from urllib.parse import unquote_to_bytes

import msgspec

from gateway.api.askers import NOBODY, Asker
from gateway.api.compression import accepted
from gateway.api.crowd import Limits
from gateway.errors import BodyTooLarge, InvalidRequest, NotFound
from gateway.head import CAPTURES, LEVELS, TIMEOUT_MAX_MS, Head
from loaders.repository import is_version

URL_MAX_BYTES = 8192
HEADERS_MAX_BYTES = 32_768
HEADERS_MAX = 100
FAST_BODY_MAX_BYTES = 262_144
"""Larger bodies without a binary part go through the Starlette door, and JSON among them is decoded off the loop."""

MakeCaller = Callable[[str, str, str | None], msgspec.Raw]
"""(endpoint, protocol, principal) to the encoded caller; one object for equal ones."""

INFER = re.compile(rb"/v2/models/([^/?#]+)(?:/versions/([^/?#]+))?/infer")
PREDICT = re.compile(rb"/v1/models/([^/?#:]+)(?:/versions/([^/?#:]+))?(?::|%3[Aa])predict")
_HEX, _NO_TRACE, _NO_SPAN = b"0123456789abcdef", b"0" * 32, b"0" * 16
_LATER_TRACEPARENT = re.compile(
    rb"(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]{0,200})?"
)
"""W3C Trace Context beyond version 00: there may be more behind the flags, which is not read."""


_OURS = frozenset(
    (
        b"accept-encoding",
        b"inference-header-content-length",
        b"x-request-timeout-ms",
        b"traceparent",
        b"x-routing-key",
        b"x-tidegate-audit-level",
        b"x-tidegate-audit-capture",
        b"x-tidegate-variant",
    )
)


def make_head(
    caller: MakeCaller, path: bytes, headers: Iterable[tuple[bytes, bytes]], asker: Asker = NOBODY
) -> Head:
    """Read the path and headers (names in lower case) of an inference request that `asker` sends.

    Raises:
        NotFound: the path is no address for inference, of v2 or v1.
        InvalidRequest: a header of ours has a value that cannot be meant.
    """
    model, version, dialect = _asked(path)
    json_bytes = timeout_ms = traceparent = routing_key = level = capture = accepts = variant = None
    traces = 0
    for name, value in headers:
        if name not in _OURS:
            continue
        value = value.strip(b" \t")
        if name == b"traceparent":
            traceparent = read_traceparent(value) if (traces := traces + 1) == 1 else None
        elif name == b"x-routing-key":
            if value:
                _once(name, routing_key)
                routing_key = value.decode("latin-1")
        elif name == b"inference-header-content-length":
            _once(name, json_bytes)
            json_bytes = _number(name, value)
        elif name == b"x-request-timeout-ms":
            _once(name, timeout_ms)
            timeout_ms = min(max(_number(name, value), 1), TIMEOUT_MAX_MS)
        elif name == b"accept-encoding":
            accepts = accepted(value)
        elif name == b"x-tidegate-audit-capture":
            _once(name, capture)
            capture = read_capture(value)
        elif name == b"x-tidegate-variant":
            _once(name, variant)
            variant = read_variant(value, version)
        else:
            _once(name, level)
            level = read_level(value)
    endpoint, protocol = _recorded(model, version, dialect, json_bytes)
    if dialect == "v1":
        json_bytes = None
    return Head(
        model=model,
        version=version,
        caller=caller(endpoint, protocol, asker.principal),
        endpoint=endpoint,
        json_bytes=json_bytes,
        timeout_ms=timeout_ms,
        traceparent=traceparent,
        routing_key=routing_key,
        # The lowest raises nothing; what asks for nothing goes the common way.
        audit_level=LEVELS[0] if level is None and (capture == "full" or variant is not None) else level,
        captures_full=capture == "full",
        dialect=dialect,
        accepts=accepts,
        account=asker.account,
        variant=variant,
        forces=variant is not None and asker.forces(model),
    )


def _recorded(model: str, version: str | None, dialect: str, json_bytes: int | None) -> tuple[str, str]:
    """Endpoint and protocol as recorded; bounded: unknown names do not make callers without end."""
    named = f"models/{model}" + (f"/versions/{version}" if version else "")
    if dialect == "v1":
        return f"/v1/{named}:predict", "v1"
    return f"/v2/{named}/infer", "oip-binary" if json_bytes is not None else "oip-json"


def _asked(path: bytes) -> tuple[str, str | None, str]:
    """Model, version and dialect of an address for inference."""
    match, dialect = INFER.fullmatch(path), "oip"
    if match is None:
        match, dialect = PREDICT.fullmatch(path), "v1"
    if match is None:
        msg = "no such address"
        raise NotFound(msg)
    version = None if match[2] is None else match[2].decode("latin-1")
    if version is not None and not is_version(version):
        msg = f"no such address: versions are positive integers, found {version[:40]!r}"
        raise NotFound(msg)
    return _name(match[1]), version, dialect


def read_traceparent(value: bytes) -> str | None:
    """A request's place in its trace (W3C); None when it is not one, which is then as if there was none.

    `tracestate` is not read: it belongs to those who pass requests on.
    """
    if (
        len(value) == 55
        and value.startswith(b"00-")
        and value[35] == value[52] == 45
        and value.translate(None, _HEX) == b"---"
        and value[3:35] != _NO_TRACE
        and value[36:52] != _NO_SPAN
    ):
        return value.decode()
    return value.decode() if _LATER_TRACEPARENT.fullmatch(value) else None


def check_json(body: bytes, json_bytes: int | None, limits: Limits) -> None:
    """Refuse JSON that would hold the interpreter up for too long: reading it is one call that nothing interrupts.

    Cost: three passes over the text, 8 ms for 4 MiB on a slow machine.

    Raises:
        BodyTooLarge: more bytes, values or brackets than are taken.
    """
    size = len(body) if json_bytes is None else json_bytes
    if size > limits.json_max_bytes:
        msg = f"JSON of {size} bytes; at most {limits.json_max_bytes} are taken: send large tensors in binary form"
        raise BodyTooLarge(msg)
    values = body.count(b",", 0, size)
    if values >= limits.json_max_values:
        most = limits.json_max_values
        msg = f"JSON of {values + 1} values; at most {most} are taken: send large tensors in binary form"
        raise BodyTooLarge(msg)
    brackets = body.count(b"[", 0, size) + body.count(b"{", 0, size)
    if brackets > limits.json_max_values // 4:
        msg = f"JSON of {brackets} lists and objects; at most {limits.json_max_values // 4} are taken: send flat data"
        raise BodyTooLarge(msg)


def traceresponse(traceparent: str, fields: bytes) -> bytes:
    """The field that names our part of the caller's trace: its id ends the prediction's, by which the log is found."""
    at = fields.find(b"x-prediction-id: ")
    span = fields[at + 43 : at + 59] if at >= 0 else b"%016x" % (getrandbits(64) | 1)
    return b"traceresponse: 00-%b-%b-%b\r\n" % (traceparent[3:35].encode(), span, traceparent[53:55].encode())


def _once(name: bytes, known: object) -> None:
    if known is not None:
        msg = f"header {name.decode()} is given twice; expected once"
        raise InvalidRequest(msg)


def read_level(value: bytes) -> str:
    """What x-tidegate-audit-level asks for.

    Raises:
        InvalidRequest: no such level.
    """
    level = value.decode("latin-1").strip().lower()
    if level not in LEVELS:
        msg = f"x-tidegate-audit-level is {level!r}; expected one of {', '.join(LEVELS)}"
        raise InvalidRequest(msg)
    return level


def read_capture(value: bytes) -> str:
    """What x-tidegate-audit-capture asks for.

    Raises:
        InvalidRequest: no such way to record.
    """
    capture = value.decode("latin-1").strip().lower()
    if capture not in CAPTURES:
        msg = f"x-tidegate-audit-capture is {capture[:40]!r}; expected one of {', '.join(CAPTURES)}"
        raise InvalidRequest(msg)
    return capture


def read_variant(value: bytes, version: str | None) -> str:
    """The variant that x-tidegate-variant names; which there are is the route's to say.

    Args:
        version: that the address names.

    Raises:
        InvalidRequest: no name, or a version is named, too.
    """
    variant = value.decode("latin-1")
    if not variant:
        msg = "x-tidegate-variant is empty; expected the name of a variant of the model's route"
        raise InvalidRequest(msg)
    if version is not None:
        msg = f"x-tidegate-variant is given with version {version} in the address; expected one of the two"
        raise InvalidRequest(msg)
    return variant


def _name(raw: bytes) -> str:
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    return raw.decode("utf-8", "replace")[:256]


def _number(name: bytes, value: bytes) -> int:
    if not value.isdigit() or len(value) > 12:
        msg = f"header {name.decode()} is {value[:40].decode('latin-1')!r}; expected a number"
        raise InvalidRequest(msg)
    return int(value)
