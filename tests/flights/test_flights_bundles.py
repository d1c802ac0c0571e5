"""The committed bundles, and version 3 as it is built from the retrain: they load, and agree with themselves."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.flights import build
from examples.flights.data import CATEGORICAL, FEATURES, Flights
from loaders.bundle import Decision, LabelSettings
from loaders.session import Session, load

MODELS = build.SERVED.parent
QUARTER_S = {
    "1": ("2013-01-01", "2013-04-01"),
    "2": ("2013-04-01", "2013-07-01"),
    "3": ("2013-04-01", "2013-07-01"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 and 2 as committed, 3 built without fault, 4 with hour and pressure swapped."""
    root = tmp_path_factory.mktemp("repository")
    (root / "flights").mkdir()
    for version in ("1", "2"):
        (root / "flights" / version).symlink_to(build.SERVED / version)
    build.build_version(root / "flights" / "3")
    build.build_version(root / "flights" / "4", ("pressure", "hour"))
    return root


def array(tensor: dict[str, Any]) -> np.ndarray:
    """A tensor of a golden request; null is NaN."""
    dtype = {"FP32": np.float32, "INT64": np.int64}[tensor["datatype"]]
    values = [np.nan if value is None else value for value in tensor["data"]]
    return np.array(values, dtype).reshape(tensor["shape"])


def reference(root: Path, version: str) -> dict[str, np.ndarray]:
    """A version's reference."""
    with np.load(root / "flights" / version / "reference.npz") as file:
        return dict(file.items())


@pytest.mark.parametrize("version", ["1", "2", "3", "4"])
def test_bundle_says_what_it_is(repository: Path, version: str) -> None:
    """Loads, may share runs and go inline; settings name columns, labels and the decision."""
    session = load(repository, "flights", version)
    assert (session.batchable, session.inline_allowed) == (True, True)
    settings = session.bundle.settings
    assert settings.inputs["X"].features == FEATURES
    assert settings.inputs["X"].categorical == CATEGORICAL
    assert settings.labels == LabelSettings(kind="class", maturity_s=8 * 86_400)
    assert settings.outputs["probabilities"].decision == Decision(column=1, threshold=build.THRESHOLD)
    assert [spec.name for spec in session.signature.outputs] == ["label", "probabilities"]
    card = (repository / "flights" / version / str(settings.card)).read_text()
    assert card.startswith(f"# flights, version {version}\n")
    assert settings.owner in card


@pytest.mark.parametrize("version", ["1", "2", "3", "4"])
def test_golden_answers_are_the_models_own(repository: Path, version: str) -> None:
    """Eight to sixteen requests, one with missing weather; answered within the tolerances they name."""
    session = load(repository, "flights", version)
    lines = (repository / "flights" / version / "golden.jsonl").read_text().splitlines()
    assert 8 <= len(lines) <= 16
    assert any("null" in line for line in lines)
    for line in map(json.loads, lines):
        (x,) = line["inputs"]
        found = session.run({"X": array(x)})
        for tensor, value in zip(line["outputs"], found, strict=True):
            assert np.allclose(value, array(tensor), atol=line["atol"], rtol=line["rtol"]), line["id"]


@pytest.mark.parametrize("version", ["1", "2", "3", "4"])
def test_reference_is_the_models_own(repository: Path, version: str) -> None:
    """2,000 labelled rows over the training quarter, in order, with this model's scores."""
    found = reference(repository, version)
    kinds = {name: (value.dtype.name, value.shape) for name, value in found.items()}
    assert kinds == {
        "rows": ("float32", (2000, 13)), "times_ns": ("int64", (2000,)),
        "scores": ("float32", (2000,)), "labels": ("int64", (2000,)),
    }  # fmt: skip
    start, end = (np.datetime64(day, "ns").astype(np.int64) for day in QUARTER_S[min(version, "3")])
    day_ns = 86_400_000_000_000
    assert start <= found["times_ns"][0] < start + day_ns
    assert end - day_ns <= found["times_ns"][-1] < end + day_ns // 4
    assert (np.diff(found["times_ns"]) >= 0).all()
    assert set(found["labels"].tolist()) == {0, 1}
    scores = build.probabilities(load(repository, "flights", version), found["rows"])[:, 1]
    assert np.allclose(scores, found["scores"], atol=1e-6)


@pytest.mark.parametrize("version", ["1", "2", "3", "4"])
def test_sums_cover_every_file(repository: Path, version: str) -> None:
    """SHA256SUMS names every file beside it with its digest."""
    directory = repository / "flights" / version
    found = {
        line.split("  ")[1]: line.split("  ")[0]
        for line in (directory / "SHA256SUMS").read_text().splitlines()
    }
    beside = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in directory.iterdir()
        if p.name != "SHA256SUMS"
    }
    assert found == beside


def test_bundles_are_small() -> None:
    """What is committed and served stays below 1 MB."""
    assert sum(p.stat().st_size for p in build.SERVED.rglob("*") if p.is_file()) < 1_000_000


def scores(session: Session, rows: np.ndarray) -> np.ndarray:
    """Of the class late."""
    return build.probabilities(session, rows)[:, 1]


def test_swap_is_two_columns_and_nothing_else(repository: Path) -> None:
    """The faulty version answers on swapped rows exactly what the faultless one answers."""
    rows = reference(repository, "2")["rows"]
    exchanged = rows.copy()
    i, j = FEATURES.index("hour"), FEATURES.index("pressure")
    exchanged[:, [i, j]] = exchanged[:, [j, i]]
    faultless, faulty = (load(repository, "flights", version) for version in ("3", "4"))
    assert np.array_equal(scores(faulty, exchanged), scores(faultless, rows))
    assert not np.allclose(scores(faulty, rows), scores(faultless, rows), atol=0.1)


@pytest.mark.parametrize("pair", list(itertools.combinations(FEATURES, 2)))
def test_swapping_twice_gives_the_file_back(pair: tuple[str, str]) -> None:
    """The patch keeps the file's length, touches the index alone, and its order of names means nothing."""
    model = build.RETRAIN.read_bytes()
    once = build.swapped(model, *pair)
    assert once == build.swapped(model, *reversed(pair))
    different = [k for k in range(len(model)) if model[k] != once[k]] if len(once) == len(model) else None
    assert different is not None
    assert len(different) == 2


@pytest.mark.parametrize(
    ("swap", "says"), [(("hour", "colour"), "'colour' is no column"), (("hour", "hour"), "with itself")]
)
def test_a_swap_that_means_nothing_is_refused(tmp_path: Path, swap: tuple[str, str], says: str) -> None:
    """Unknown and equal names are refused by name; nothing is left behind."""
    with pytest.raises(ValueError, match=says):
        build.build_version(tmp_path / "3", swap)
    with pytest.raises(ValueError, match="stands 0 times"):
        build.swapped(build.swapped(build.RETRAIN.read_bytes(), "hour", "dow"), "hour", "dow")
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_never_written_over(repository: Path) -> None:
    """What exists stays as it is."""
    before = (repository / "flights" / "3" / "SHA256SUMS").read_text()
    with pytest.raises(FileExistsError, match="remove it first"):
        build.build_version(repository / "flights" / "3", ("hour", "dow"))
    assert (repository / "flights" / "3" / "SHA256SUMS").read_text() == before
    assert sorted(p.name for p in (repository / "flights").iterdir()) == ["1", "2", "3", "4"]


def test_building_needs_no_training_packages() -> None:
    """A version is built with what the gateway needs to run."""
    code = (
        "import sys; from examples.flights import build, send; "
        "print(sorted({'onnx', 'sklearn', 'skl2onnx', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pairs_hold_every_swap() -> None:
    """All 78 pairs, largest shift first; most are faults to show; a faultless retrain shifts next to nothing."""
    held = json.loads(build.PAIRS.read_text())
    found = build.pairs()
    names = {frozenset((pair["a"], pair["b"])) for pair in found}
    assert names == {frozenset(pair) for pair in itertools.combinations(FEATURES, 2)}
    sizes = [abs(pair["shift_sd"]) for pair in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(size >= held["faults_from_sd"] for size in sizes) >= 10
    assert abs(held["faultless_against_2"]["shift_sd"]) < 0.05


def test_pairs_are_what_the_models_do(flights_2013: Flights) -> None:
    """Recomputed on July to September: the twin's shift, version 2's against 1, and the largest swap's."""
    served = flights_2013.between(date(2013, 7, 1), date(2013, 10, 1)).rows
    held = json.loads(build.PAIRS.read_text())
    retrain = build.RETRAIN.read_bytes()
    one, two = (scores(load(MODELS, "flights", v), served).astype(np.float64).mean() for v in ("1", "2"))
    sd = reference(MODELS, "2")["scores"].astype(np.float64).std()
    assert sd == pytest.approx(held["reference_sd"]["2"], abs=1e-6)
    assert (two - one) / sd == pytest.approx(held["version_2_against_1_in_sd_of_2"]["shift_sd"], abs=1e-3)
    largest = held["pairs"][0]
    for model, expected in (
        (retrain, held["faultless_against_2"]["shift_sd"]),
        (build.swapped(retrain, largest["a"], largest["b"]), largest["shift_sd"]),
    ):
        mean = build.run_bytes(model, served)[:, 1].astype(np.float64).mean()
        assert (mean - two) / sd == pytest.approx(expected, abs=1e-3)
