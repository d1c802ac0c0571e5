"""Versions of the flights model as directories, from a model's bytes: what an exporter leaves behind.

data -> train -> **build**. `write_version` writes a bundle around a model; `build_version` makes a version 3 from the
committed retrain of version 2, faultless or with the fault that exporters are known for: two columns swapped. The
graph begins with a Gather over the columns, so that the swap is sixteen bytes of its index, patched without the
onnx package. Reference and golden answers then come from the faulty model too, as they would from such an
exporter: the bundle agrees with itself, and only beside the version that serves does the fault show.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.flights.data import CATEGORICAL, FEATURES
from loaders.session import Session, load

HERE = Path(__file__).resolve().parent
SERVED = HERE.parent / "models" / "flights"
RETRAIN = HERE / "retrain" / "model.onnx"
PAIRS = HERE / "pairs.json"
OWNER = "delays@example.org"
THRESHOLD = 0.5
"""Likelier late than not: the `label` output and the decision then say the same."""
GOLDEN, GOLDEN_ATOL = 12, 1e-5
IDENTITY = struct.pack(f"<{len(FEATURES)}q", *range(len(FEATURES)))
"""The index that a faultless exporter writes, as it stands in the file."""

BUNDLE = """# What this version says of itself.
schema = 1
owner = "{owner}"
tier = "medium"
task = "binary"
card = "README.md"
reference = "reference.npz"
golden = "golden.jsonl"
audit = {{ level = "spool", on_unavailable = "fail" }}
# Airlines report within a week of landing; judged a day later.
labels = {{ kind = "class", maturity_s = 691200 }}

[inputs.X]
features = [{features}]
categorical = [{categorical}]

[outputs.label]
kind = "label"

[outputs.probabilities]
kind = "probability"
classes = ["on_time", "late"]
# Likelier late than not, so that the decision and the `label` output agree.
decision = {{ column = 1, threshold = {threshold} }}
"""
RETRAIN_CARD = """# flights, version {version}

Version 2 trained once more, on the same quarter (April to June 2013) with another seed; see version 2's card for
data, columns, limits and owner. Made by `examples/flights/build.py`{fault}.

Owner: {owner}
"""


def pairs() -> list[dict[str, Any]]:
    """What swapping two columns does, largest first: `a`, `b`, `shift_sd`, `wrong` (see pairs.json)."""
    found: list[dict[str, Any]] = json.loads(PAIRS.read_text())["pairs"]
    return found


def swapped(model: bytes, a: str, b: str) -> bytes:
    """The model with two columns exchanged, as bytes.

    Raises:
        ValueError: a name is no column, both are the same, or the model's index is not found exactly once.
    """
    for name in (a, b):
        if name not in FEATURES:
            msg = f"{name!r} is no column; there are {', '.join(FEATURES)}"
            raise ValueError(msg)
    if a == b:
        msg = f"column {a!r} cannot be swapped with itself"
        raise ValueError(msg)
    if model.count(IDENTITY) != 1:
        msg = f"the index of columns stands {model.count(IDENTITY)} times in the model; expected once"
        raise ValueError(msg)
    order = list(range(len(FEATURES)))
    i, j = FEATURES.index(a), FEATURES.index(b)
    order[i], order[j] = j, i
    return model.replace(IDENTITY, struct.pack(f"<{len(order)}q", *order))


def build_version(directory: Path, swap: tuple[str, str] | None = None) -> None:
    """Write a version directory (.../flights/3) from the retrain of version 2. Takes about 0.3 s.

    Args:
        directory: what it becomes; must not exist.
        swap: two columns that the exporter mixed up; None: a faultless retrain.

    Raises:
        ValueError: as `swapped`.
        FileExistsError: something is there already.
    """
    model = RETRAIN.read_bytes()
    fault = ""
    if swap is not None:
        model = swapped(model, *swap)
        fault = f" with the fault of an exporter: `{swap[0]}` and `{swap[1]}` are swapped"
    with np.load(SERVED / "2" / "reference.npz") as file:
        reference = {name: file[name] for name in ("rows", "times_ns", "labels")}
    card = RETRAIN_CARD.format(version=directory.name, fault=fault, owner=OWNER)
    write_version(directory, model, card, **reference)


def write_version(
    directory: Path,
    model: bytes,
    card: str,
    *,
    rows: NDArray[np.float32],
    times_ns: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> None:
    """Write model, card, bundle.toml, reference, golden answers and SHA256SUMS; the directory appears whole.

    Raises:
        FileExistsError: something is there already.
    """
    if directory.exists():
        msg = f"{directory} exists; remove it first"
        raise FileExistsError(msg)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".building-") as scratch:
        place = Path(scratch) / "flights" / "1"
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(model)
        session = load(Path(scratch), "flights", "1")
        scores = probabilities(session, rows)[:, 1]
        np.savez_compressed(
            place / "reference.npz", rows=rows, times_ns=times_ns, scores=scores, labels=labels
        )
        (place / "golden.jsonl").write_text(_golden(session, rows))
        (place / "README.md").write_text(card)
        (place / "bundle.toml").write_text(bundle_toml())
        sums = "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
            for path in sorted(place.iterdir())
        )
        (place / "SHA256SUMS").write_text(sums)
        place.rename(directory)


def bundle_toml() -> str:
    """The bundle.toml that all versions share."""
    return BUNDLE.format(
        owner=OWNER, features=_quoted(FEATURES), categorical=_quoted(CATEGORICAL), threshold=THRESHOLD
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def probabilities(session: Session, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 2] of any number of rows, in runs of 4,096."""
    parts = [session.run({"X": rows[i : i + 4096]}, ["probabilities"])[0] for i in range(0, len(rows), 4096)]
    return np.concatenate(parts)


def run_bytes(model: bytes, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 2] of a model that lies in no repository."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "flights" / "1"
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(model)
        return probabilities(load(Path(scratch), "flights", "1"), rows)


def _golden(session: Session, rows: NDArray[np.float32]) -> str:
    """Requests drawn evenly, every third of three rows, the last with all weather missing; and their answers."""
    lines = []
    for k in range(GOLDEN):
        at = k * (len(rows) - 3) // (GOLDEN - 1)
        x = rows[at : at + (3 if k % 3 == 2 else 1)].copy()
        if k == GOLDEN - 1:
            x[:, FEATURES.index("temp") :] = np.nan
        label, odds = session.run({"X": x}, ["label", "probabilities"])
        line = {
            "id": f"golden-{k + 1}",
            "inputs": [tensor("X", "FP32", x)],
            "outputs": [tensor("label", "INT64", label), tensor("probabilities", "FP32", odds)],
            "atol": GOLDEN_ATOL,
            "rtol": 0.0,
        }
        lines.append(json.dumps(line, separators=(",", ":")) + "\n")
    return "".join(lines)


def tensor(name: str, datatype: str, array: NDArray[Any]) -> dict[str, Any]:
    """A tensor of the Open Inference Protocol; missing values are null, float32 at its shortest."""
    data = [None if value != value else _short(value) for value in array.ravel()]
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": data}


def _short(value: Any) -> float | int:
    return int(value) if value.dtype.kind == "i" else float(str(value))
