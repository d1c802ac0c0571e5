"""Loaders: from a directory to something callable. Knows nothing of HTTP, Kafka or routes.

    repository (what is there) -> material (its files, read once) -> verdicts, trial (tried in a child first)
        -> session (ONNX Runtime) -> probe, golden, warm (before it is ready) -> registry (versions and their states)

Importing this package switches ONNX Runtime's telemetry off; nothing else imports onnxruntime.
"""

import os

# Its wheels report model metadata to their maker by default; set before the first import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
