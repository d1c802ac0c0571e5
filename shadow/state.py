"""What watching goes by and what it carries from tick to tick: settings and state. Words, not steps.

Both are plain data: the settings stand in the log with the first tick that goes by them, the state in the sidecar's
database. So a replay needs nothing but log and bundles, and two folds can be compared byte for byte.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

from gateway.settings import Policy
from shadow.ratio import Ratio
from shadow.rollouts import Rollouts

_DEFAULT_POLICY = Policy()


class Settings(msgspec.Struct, frozen=True):
    """What the outcome depends on beside log and bundles; stands in the log with the first tick of each start."""

    clock: str = "log"
    policies: dict[str, Policy] = {}

    def policy_of(self, model: str) -> Policy:
        """A model's policy."""
        return self.policies.get(model, _DEFAULT_POLICY)

    def trusts_keys(self, model: str) -> bool:
        """Whether the callers of a model may choose their arm by a routing key and still prove something."""
        return self.policy_of(model).trust_routing_keys

    @property
    def sha256(self) -> str:
        """Digest (hex), as verdicts carry it."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class Tick(NamedTuple):
    """One tick's own facts. `cuts` is for each (source, epoch) that moved: [first seq, next seq)."""

    number: int
    at_ns: int
    cuts: dict[str, tuple[int, int]]


class Accuracy(msgspec.Struct):
    """Rows of one version in one week whose label came due."""

    rows: int = 0
    wrong: int = 0
    unlabelled: int = 0
    absolute_error: float = 0.0
    """Sum, of versions that give values."""


class WatchState(msgspec.Struct):
    """All that is carried from tick to tick beside the label join."""

    settings: Settings = Settings()
    tick: int = 0
    clock_ns: int = 0
    times: list[int] = []
    """What the clock has not been set by yet: it takes a few events to move it."""
    rollouts: Rollouts = msgspec.field(default_factory=Rollouts)
    ratios: dict[str, Ratio] = {}
    """By model, whether traffic is split as its route says."""
    read_ns: dict[str, int] = {}
    """By source of a worker that draws, the time up to which it was read."""
    accuracy: dict[str, dict[str, dict[str, Accuracy]]] = {}
    """By model, version and week (the date of its Monday)."""
    labels: dict[str, int] = {}
    """What became of labels, each counted once: kept, duplicate, erratum, early, late, unknown, wrong_row,
    wrong_type, wrong_model, or undeclared (no version of the model that answered declares labels)."""
    counts: dict[str, int] = {}
    """Events by what they were."""
    trees: dict[str, dict[str, str]] = {}
    """Digest of each version as it last answered."""
    complete: bool = True
    """Whether the last tick missed no record."""
    incomplete_ticks: int = 0
    left_out: dict[str, int] = {}
    """How often a step of a tick broke and was left out, by step; such a tick counts as incomplete."""
    not_joined: int = 0
    """Predictions that wait for no labels: too many did."""
    unread_scores: int = 0
    """Answers whose outputs were by hash or not what the bundle declares."""
