"""Every error that the gateway raises on purpose, as one tree without HTTP in it.

`code` is stable and documented in docs/errors.md; `gateway/api/problems.py` holds the one table from
type to HTTP status. Messages name the thing, what was found, what was expected and what to do; they
never hold paths, addresses or traces.
"""

from __future__ import annotations

from typing import ClassVar


class GatewayError(Exception):
    """Root of the tree."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False


class InvalidRequest(GatewayError):
    """The request cannot be understood or does not fit the model's signature."""

    code = "invalid_request"


class BodyTooLarge(InvalidRequest):
    """The body, or the JSON in it, is over `data.body_max_bytes` or `data.json_max_bytes`, or holds too many values."""

    code = "body_too_large"


class HeadTooLarge(InvalidRequest):
    """The request's header fields are too many or too long."""

    code = "head_too_large"


class UrlTooLong(InvalidRequest):
    """The request's target is too long."""

    code = "url_too_long"


class RequestTimeout(InvalidRequest):
    """The request came too slowly: its head or its body was not here in time."""

    code = "request_timeout"
    retryable = True


class UnsupportedCoding(InvalidRequest):
    """The request's Content-Encoding is not one we decode."""

    code = "unsupported_coding"


class InputOutOfProfile(InvalidRequest):
    """A value is not like those of the version's reference, and its bundle says to refuse such."""

    code = "input_out_of_profile"


class NotFound(GatewayError):
    """No such address."""

    code = "not_found"


class MethodNotAllowed(GatewayError):
    """The address exists, the method does not."""

    code = "method_not_allowed"


class UnknownModel(NotFound):
    """No model, or no such version of it, is known here."""

    code = "unknown_model"

    def __init__(self, model: str, version: str | None = None) -> None:
        self.model = model
        self.version = version
        at = f" version {version}" if version is not None else ""
        super().__init__(f"Request for unknown model: '{model}'{at} is not found")


class ModelNotReady(GatewayError):
    """The model is known and cannot answer yet, or no longer."""

    code = "model_not_ready"
    retryable = True


class ModelStopped(ModelNotReady):
    """An operator stopped the model: nothing of it is answered until it is resumed."""

    code = "model_stopped"


class Overloaded(GatewayError):
    """The request cannot be finished in time, or the queue is full: refused at once."""

    code = "overloaded"
    retryable = True


class RateLimited(GatewayError):
    """The principal asked for more than `[limits]` gives it: it is refused at once, whatever others do."""

    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, wait_s: int = 1) -> None:
        self.wait_s = wait_s
        """When it may come again, whole seconds."""
        super().__init__(message)


class DeadlineExceeded(GatewayError):
    """The deadline passed before the answer was there."""

    code = "deadline_exceeded"
    retryable = True


class RequestCancelled(GatewayError):
    """The client went away before the answer was there."""

    code = "cancelled"


class InferenceFailed(GatewayError):
    """ONNX Runtime raised while running the model."""

    code = "inference_failed"


class AuditUnavailable(GatewayError):
    """The record cannot be kept and the policy is `fail`: nothing unlogged leaves."""

    code = "audit_unavailable"
    retryable = True


class AuditTimeout(AuditUnavailable):
    """The record was appended, but was not on disk in time for the level asked."""

    code = "audit_timeout"


class ConfigInvalid(GatewayError):
    """A setting is wrong; the message names its origin, key, value and bounds. Exit code 2."""

    code = "config_invalid"


class StateInUse(ConfigInvalid):
    """Another gateway holds the state directory, or a port is taken. Exit code 2."""

    code = "state_in_use"


class TokensUnusable(ConfigInvalid):
    """`tokens.toml`, or a token's own file, may be read by others or is not what it should be. At start exit code 2."""

    code = "tokens_unusable"


class StateFormatNewer(ConfigInvalid):
    """The state directory was written by a newer Tidegate. Exit code 2."""

    code = "state_format_newer"


class ControlError(GatewayError):
    """Root of what the admin API refuses."""

    code = "control_refused"


class ReasonRequired(ControlError):
    """A change came without a reason."""

    code = "reason_required"


class ChangeInvalid(ControlError):
    """A change names unknown variants, weights that do not sum, or bad values."""

    code = "change_invalid"


class PreconditionRequired(ControlError):
    """A change came without If-Match."""

    code = "precondition_required"


class RevisionConflict(ControlError):
    """The route moved on since the revision named in If-Match."""

    code = "revision_conflict"

    def __init__(
        self, message: str, *, revision: int, event: str | None, changed: dict[str, object] | None = None
    ) -> None:
        self.revision = revision
        self.event = event
        self.changed = changed or {}
        """Of the revision that stands: `by`, `reason`, `at_ns`."""
        super().__init__(message)


class StateConflict(ControlError):
    """A gate or the present state forbids the change (not ready, frozen, in use)."""

    code = "state_conflict"


class LoadFailed(ControlError):
    """A model was to be loaded and a version of it failed; the message has its reason."""

    code = "load_failed"


class ControlUnavailable(ControlError):
    """Control does not answer, so that a model cannot be loaded or unloaded at present."""

    code = "control_unavailable"
    retryable = True


class OutOfBounds(StateConflict):
    """An automaton asks for more than the bounds of the route allow."""

    code = "out_of_bounds"


class IdempotencyMismatch(ControlError):
    """An idempotency key came again with another request."""

    code = "idempotency_mismatch"


class EvidenceStale(StateConflict):
    """The evidence that a change rests on is too old, or from the future."""

    code = "evidence_stale"


class Unauthorized(ControlError):
    """No token, or one that is not known."""

    code = "unauthorized"


class Forbidden(ControlError):
    """The token is known, its scopes do not allow this; or the Host header is foreign."""

    code = "forbidden"


class LogError(GatewayError):
    """Root of what reading or writing the log raises."""

    code = "log_error"


class FrameCorrupt(LogError):
    """Bytes where a frame should stand are not one: bad length, CRC or content."""

    code = "frame_corrupt"


class WitnessUnusable(LogError):
    """A file of positions is not what `tidegate audit positions --json` prints."""

    code = "witness_unusable"


class FrameNewer(FrameCorrupt):
    """A whole frame of a kind, or with events of a type, that this version does not know: read it with a later one."""

    code = "frame_newer"


class RingUnusable(LogError):
    """A ring cannot be made or read: no room in its directory, foreign format, newer format."""

    code = "ring_unusable"


class FrameTooLarge(LogError):
    """A frame is over an eighth of the ring."""

    code = "frame_too_large"


class FeedUnreachable(LogError):
    """The topic cannot be read: no broker answers, or it is not there."""

    code = "feed_unreachable"
    retryable = True


class BrokerSettingsUnusable(FeedUnreachable):
    """A password, certificate or key that `[kafka]` names cannot be read."""

    code = "broker_settings_unusable"


class TopicRefused(LogError):
    """The topic's settings lose or change records: nothing is sent until they are mended."""

    code = "topic_refused"
    retryable = True


class TopicLostRecords(LogError):
    """The topic no longer has records that it acknowledged: they are sent again, as far as the spool has them."""

    code = "topic_lost_records"
    retryable = True


class LogIncomplete(LogError):
    """What shall be folded again is not all in the log: records are gone, or not there yet."""

    code = "log_incomplete"


class SnapshotCorrupt(GatewayError):
    """A control snapshot does not match its own checksum."""

    code = "snapshot_corrupt"
