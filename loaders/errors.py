"""Every error of loading a model, as one tree. Messages name model, file and what to do, never paths."""

from __future__ import annotations

from typing import ClassVar


class ModelError(Exception):
    """Root of the tree."""

    code: ClassVar[str] = "model_error"
    retryable: ClassVar[bool] = False
    """It may load later with nothing done about it."""
    kept: ClassVar[bool] = True
    """It follows from the bytes of the version's files alone, so that it holds as long as they do."""


class RepositoryMissing(ModelError):
    """The repository directory does not exist or cannot be read."""

    code = "repository_missing"


class BundleInvalid(ModelError):
    """bundle.toml cannot be read, or has a key or value that is not known."""

    code = "bundle_invalid"


class ModelConfigInvalid(ModelError):
    """config.pbtxt cannot be read, asks for what is not served, or says other things than the graph."""

    code = "model_config_invalid"


class GoldenMismatch(ModelError):
    """golden.jsonl cannot be read, or the model does not answer as it says."""

    code = "golden_mismatch"


class TrialFailed(ModelError):
    """The model's trial load ended badly: it crashed, or needed more time or memory than a load may take."""

    code = "trial_failed"


class MemoryExceeded(ModelError):
    """One more version would need more memory than the gateway may take."""

    code = "memory_exceeded"


class WeightsInvalid(ModelError):
    """Weights lie in a file that may not be read, or is not there: outside of the version, a link, no file."""

    code = "weights_invalid"
    kept = False


class ModelInvalid(ModelError):
    """ONNX Runtime cannot load the file, or the graph uses what we do not serve."""

    code = "model_invalid"


class ModelUnreadable(ModelError):
    """The version's files are not there, or cannot be read, at this moment: a mount that is away, a move."""

    code = "model_unreadable"
    retryable = True
    kept = False


class VersionChanged(ModelError):
    """A version's files were written to while it was loaded: what was hashed is not what would run."""

    code = "version_changed"
    kept = False


class ProviderUnavailable(ModelError):
    """An execution provider was asked for that this build of ONNX Runtime does not have."""

    code = "provider_unavailable"


def by_code(code: str) -> type[ModelError]:
    """The class of an error that another process told; the root for one that is not known."""
    return next((kind for kind in ModelError.__subclasses__() if kind.code == code), ModelError)
