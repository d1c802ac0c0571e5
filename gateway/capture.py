"""Capture: which requests are recorded whole although they are larger than `audit.capture_max_bytes`.

core (admit, route) -> batching -> **capture** -> recording. Three ask: a shadow that is to answer the request too (by
the route that it was sent by, so that the mirror finds what it will look for), its version (`audit.capture` of
bundle.toml), and the request itself. Nobody can ask for less, and nothing beyond a frame is recorded whole. Asked only
of requests above the limit: others pay nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.audit.sampling import sampled_by
from gateway.head import CAPTURE_PARAMETER
from gateway.sizing import BESIDE_BYTES
from gateway.tensors import named_bytes, row_bytes
from loaders.bundle import BUNDLE_FILE
from loaders.datatypes import ITEM_BYTES
from loaders.errors import BundleInvalid

REPLY_FIELD = b"x-tidegate-audit-capture: %b\r\n"


class Asked:
    """The sink of a request that asked for its tensors whole: its reply says what the record has of them.

    Attributes:
        captured: "full", or "hash" where the record did not take them.
        declined: there is no room for wishes now.
    """

    __slots__ = ("_sink", "captured", "declined")

    def __init__(self, sink: Any, captured: str = "full") -> None:
        self._sink = sink
        self.captured = captured
        self.declined = False

    @property
    def disconnected(self) -> bool:
        """The client left."""
        return bool(self._sink.disconnected)

    def reply(self, status: int, fields: bytes, body: bytes) -> None:
        """As any sink's."""
        if b"x-prediction-id: " in fields:
            # Without a record nothing can be said of it.
            fields += REPLY_FIELD % self.captured.encode()
        self._sink.reply(status, fields, body)


def ask(inference: Any) -> None:
    """A request wants its tensors whole, by its head or by parameter."""
    if type(inference.sink) is not Asked:
        inference.sink = Asked(inference.sink)


def decline(inferences: Iterable[Any]) -> None:
    """Records of these are as others' though they asked for more: what a client wishes takes nobody's room."""
    for inference in inferences:
        if type(inference.sink) is Asked:
            inference.sink.declined = True


def asked_by(parameters: dict[str, Any]) -> bool:
    """Whether a request's parameters ask for it; other values were refused as they were read."""
    return parameters.get(CAPTURE_PARAMETER) == "full"


def wanted(version: Any, inference: Any) -> bool:
    """Whether a request above the limit is recorded whole if a frame takes it. Cost: up to 1 us a shadow."""
    return (
        version.captures_full
        or (type(inference.sink) is Asked and not inference.sink.declined)
        or bool(sampled_by(inference.unit, version.version, inference.assignment.shadows))
    )


def told(version: Any, inference: Any) -> None:
    """It is recorded by hash: its reply says so where somebody who will read it asked for more."""
    if type(inference.sink) is Asked:
        inference.sink.captured = "hash"
    elif version.captures_full:
        inference.sink = Asked(inference.sink, "hash")


def check_room(session: Any, frame_max_bytes: int) -> None:
    """Refuse a version that is to be recorded whole, and whose rows the log may not take.

    Args:
        session: a loaded one, `loaders.session`.
        frame_max_bytes: what one frame of this worker's ring takes, an eighth of it.

    Raises:
        BundleInvalid: with the size of a row and the ring that would take it, or the tensor whose size is open.
    """
    settings, signature = session.bundle.settings, session.signature
    if settings.audit.capture != "full":
        return
    where = f'{session.model}/{session.version}/{BUNDLE_FILE}: audit.capture is "full"'
    specs = (*signature.inputs, *signature.outputs)
    first = 1 if session.batchable else 0
    for spec in specs:
        if spec.datatype not in ITEM_BYTES or -1 in spec.shape[first:]:
            msg = (
                f"{where}, and tensor '{spec.name}' ({spec.datatype} {list(spec.shape)}) has no size of its own: a row"
                " may be larger than any record; expected fixed sizes, or let requests ask"
                " (x-tidegate-audit-capture: full)"
            )
            raise BundleInvalid(msg)
    taken = _row_bytes(session) + named_bytes(signature) + BESIDE_BYTES
    if taken > frame_max_bytes:
        msg = (
            f"{where}, and a row takes {taken} bytes of the log; a record of this gateway holds {frame_max_bytes}, an"
            f" eighth of its ring: set audit.ring_bytes to {taken * 8 + 1024} or more, or leave audit.capture out"
        )
        raise BundleInvalid(msg)


def _row_bytes(session: Any) -> int:
    found = row_bytes(session.signature, batchable=True) if session.batchable else None
    if found is not None:
        return found
    size = 0
    for spec in (*session.signature.inputs, *session.signature.outputs):
        elements = 1
        for dim in spec.shape[1 if session.batchable else 0 :]:
            elements *= dim
        size += elements * ITEM_BYTES[spec.datatype]
    return size
