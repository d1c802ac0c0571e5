"""Loaders: from a directory to something callable. Knows nothing of HTTP, Kafka or routes.

    repository (what is there) -> bundle (what it says of itself, digests) -> session (ONNX Runtime)
        -> probe (is it batchable) -> registry (loaded versions and their states)

Importing this package switches ONNX Runtime's telemetry off; nothing else imports onnxruntime.
"""

import os

# Its wheels report model metadata to their maker by default; set before the first import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
