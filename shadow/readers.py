"""What versions say of themselves, kept: how outputs are read, and the settings. Between bundles and watch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loaders.bundle import BundleSettings
from shadow.outputs import OutputReader
from shadow.tally import VersionKey


class ReferenceRows(Protocol):
    """What a bundle's reference file says."""

    @property
    def scores(self) -> NDArray[np.float64]:
        """The version's scores on its reference rows."""
        ...


class BundleSource(Protocol):
    """Where bundles are read; see `shadow.bundles`."""

    def settings(self, model: str, version: str, tree_sha256: str) -> BundleSettings | None:
        """bundle.toml of the version with that digest, None when it is not there (any more)."""
        ...

    def reference(self, model: str, version: str, tree_sha256: str) -> ReferenceRows | None:
        """Its reference rows, None when it has none."""
        ...


class Readers:
    """Reads outputs by version; each bundle is asked for once.

    Args:
        bundles: of versions that it does not have, outputs are read by their form alone.

    Threading: one thread.
    """

    def __init__(self, bundles: BundleSource) -> None:
        self._bundles = bundles
        self._made: dict[VersionKey, tuple[OutputReader, BundleSettings]] = {}

    def outputs(self, key: VersionKey) -> OutputReader:
        """What reads a version's outputs."""
        return self._of(key)[0]

    def settings(self, key: VersionKey) -> BundleSettings:
        """A version's settings; those of an empty bundle.toml where it is not there."""
        return self._of(key)[1]

    def reference(self, key: VersionKey) -> ReferenceRows | None:
        """A version's reference rows, None when it has none."""
        return self._bundles.reference(*key)

    def _of(self, key: VersionKey) -> tuple[OutputReader, BundleSettings]:
        made = self._made.get(key)
        if made is None:
            found = self._bundles.settings(*key)
            settings = BundleSettings() if found is None else found
            made = self._made[key] = (OutputReader(settings), settings)
        return made
