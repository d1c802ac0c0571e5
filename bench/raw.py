"""Raw ONNX Runtime: a plain loop over one session, nothing else. A partner of the figures.

    python -m bench.raw --model FILE --rows N       each line on stdin is a time in seconds; the answer is one JSON line

One thread, as one worker has by default; inputs are made before, their values do not matter.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

import loaders  # noqa: F401  (turns ONNX Runtime's telemetry off before it is imported)

DISTINCT_FEEDS = 32


class Ran(msgspec.Struct, frozen=True):
    """What the loop did."""

    rows: int
    cpu_s: float
    wall_s: float


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=1)
    options = parser.parse_args()
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(str(options.model), settings, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    shape = [size if isinstance(size, int) else options.rows for size in taken.shape]
    rng = np.random.default_rng(1)
    feeds = [{taken.name: rng.uniform(-3, 3, shape).astype(np.float32)} for _ in range(DISTINCT_FEEDS)]
    for line in sys.stdin:
        rows, cpu_s, start_s = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() - start_s < float(line):
            for feed in feeds:
                session.run(names, feed)
            rows += shape[0] * len(feeds)
        ran = Ran(rows, time.process_time() - cpu_s, time.perf_counter() - start_s)
        print(msgspec.json.encode(ran).decode(), flush=True)


if __name__ == "__main__":
    main()
