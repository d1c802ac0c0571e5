"""Every error of loading a model, as one tree. Messages name model, file and what to do, never paths."""

from __future__ import annotations

from typing import ClassVar


class ModelError(Exception):
    """Root of the tree."""

    code: ClassVar[str] = "model_error"
    retryable: ClassVar[bool] = False
    """It may load later with nothing done about it."""


class RepositoryMissing(ModelError):
    """The repository directory does not exist or cannot be read."""

    code = "repository_missing"


class BundleInvalid(ModelError):
    """bundle.toml cannot be read, or has a key or value that is not known."""

    code = "bundle_invalid"


class ModelInvalid(ModelError):
    """ONNX Runtime cannot load the file, or the graph uses what we do not serve."""

    code = "model_invalid"


class ModelUnreadable(ModelError):
    """The version's files are not there, or cannot be read, at this moment: a mount that is away, a move."""

    code = "model_unreadable"
    retryable = True


class VersionChanged(ModelError):
    """A version's files were written to while it was loaded: what was hashed is not what would run."""

    code = "version_changed"


class ProviderUnavailable(ModelError):
    """An execution provider was asked for that this build of ONNX Runtime does not have."""

    code = "provider_unavailable"
