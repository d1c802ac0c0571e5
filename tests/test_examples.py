"""The example models are what their recipe makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.make_models import CENTRES, digests, files
from loaders.session import load

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_recipe_makes_the_committed_files() -> None:
    """From nothing to the same bytes: files and DIGESTS, and no file more."""
    made = files()
    assert digests(made) == (EXAMPLES / "DIGESTS").read_text()
    for name, content in made.items():
        assert (EXAMPLES / name).read_bytes() == content, name
    found = {
        p.relative_to(EXAMPLES).as_posix()
        for p in (EXAMPLES / "models" / "quickstart").rglob("*")
        if p.is_file()
    }
    assert found == set(made)


def test_examples_can_do_what_they_say() -> None:
    """Both versions load, may share runs, and tell the three kinds apart."""
    for version in ("1", "2"):
        session = load(EXAMPLES / "models", "quickstart", version)
        assert (session.batchable, session.inline_allowed) == (True, True)
        labels, odds = session.run({"X": CENTRES.astype(np.float32)})
        assert labels.tolist() == [0, 1, 2]
        assert np.allclose(odds.sum(axis=1), 1, atol=1e-5)
        outputs = session.bundle.settings.outputs["probabilities"]
        assert len(outputs.classes) == odds.shape[1]
