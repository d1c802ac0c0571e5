"""The profile runs and its parts are within the whole."""

from __future__ import annotations

from bench.profile import profile
from gateway.stages import REQUEST_STAGES


def test_the_profile_uses_the_stage_words_and_adds_up() -> None:
    """Stages are the documented ones in their order; parts and rest make the whole."""
    *parts, whole = profile(turns=20, rounds=3).parts
    named = list(dict.fromkeys(part.stage for part in parts if part.stage))
    assert named == [stage for stage in REQUEST_STAGES if stage in named]
    assert abs(sum(part.us for part in parts) - whole.us) < 0.01
    assert all(part.us > 0 for part in parts[:-2])
    assert whole.interval.low <= whole.us <= whole.interval.high
