"""A process that appends labels as fast as its ring takes them. Run as a script:

    appender.py STATE_DIR RING_DIR RING_BYTES LIMIT [ROLE]

It prints the last value published, a line each, once it is in the ring; a reply would leave only then.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from gateway.audit.event import Feedback
from gateway.audit.source import claim_source
from gateway.audit.writer import Writer

GATEWAY_ID = "00112233aabbccdd"


def main() -> None:
    state_dir, ring_dir, ring_bytes, limit, *roles = sys.argv[1:]
    role = roles[0] if roles else "worker"
    source = claim_source(Path(state_dir), GATEWAY_ID, role, Path(ring_dir), int(ring_bytes))
    writer = Writer(source, GATEWAY_ID)
    value = 0
    refused = 0
    while value < int(limit):
        label = Feedback(kind="label", at_ns=1, labels=[{"id": "x", "row": 0, "value": value}])
        if writer.append_events([label]) is None:
            refused += 1
            if refused % 50 == 0:
                writer.lose(1)
            time.sleep(0.0002)
            continue
        sys.stdout.write(f"{value}\n")
        sys.stdout.flush()
        value += 1
    writer.close()


if __name__ == "__main__":
    main()
