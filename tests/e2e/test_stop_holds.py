"""A stop holds: once it is acknowledged no request received later is answered, in any worker, until it is resumed."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.serving import Gateway, call
from tests.e2e.onnx_models import write_linear
from tests.e2e.splits import CONNECTIONS, connections_to_both, revision
from tests.e2e.wire import Wire, infer

WAYS = (
    infer("linear", [[1.0, 2.0, 3.0, 4.0]]),
    infer("linear", [[1.0, 2.0, 3.0, 4.0]]).replace(b"/infer", b"/versions/1/infer", 1),
    infer("linear", [[1.0, 2.0, 3.0, 4.0]], x_tidegate_variant="primary"),
    infer("linear", [[1.0, 2.0, 3.0, 4.0]], x_routing_key="ana"),
)


def asked(wire: Wire, rounds: int) -> Counter[int]:
    """Statuses of so many rounds of every way in; a refusal says what it is and when to come again."""
    seen: Counter[int] = Counter()
    for _ in range(rounds):
        for way in WAYS:
            reply = wire.exchange(way)
            seen[reply.status] += 1
            if reply.status != 200:
                assert json.loads(reply.body)["code"] == "model_stopped"
                assert 1 <= int(reply.fields["retry-after"]) <= 3
    return seen


def test_a_stop_holds_in_every_worker_once_acknowledged(tmp_path: Path) -> None:
    """Under load, over both workers, drawn, pinned, forced and keyed; another model and the gateway go on."""
    write_linear(tmp_path / "models")
    write_linear(tmp_path / "models", name="other")
    with Gateway(tmp_path / "models", tmp_path / "state", workers=2) as gateway:
        wires = connections_to_both(gateway)
        ended = threading.Event()

        def hammer(wire: Wire) -> Counter[int]:
            seen: Counter[int] = Counter()
            while not ended.is_set():
                seen += asked(wire, 1)
            return seen

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            running = [pool.submit(hammer, wire) for wire in wires]
            time.sleep(0.2)  # the stop comes under load
            reply = gateway.admin(
                "POST", "models/linear/stop", {"reason": "wrong prices"}, revision=revision(gateway)
            )
            ended.set()
            before = sum((future.result() for future in running), Counter())
            assert reply.status == 200, reply
            after = sum(pool.map(lambda wire: asked(wire, 20), wires), Counter())
        assert before[200] > 0
        assert set(after) == {503}
        assert call(gateway.data_url, "GET", "/v2/models/linear/ready").status == 503
        assert call(gateway.data_url, "GET", "/v2/health/ready").status == 200
        assert wires[0].exchange(infer("other", [[1.0, 2.0, 3.0, 4.0]])).status == 200
        reply = gateway.admin(
            "POST", "models/linear/resume", {"reason": "mended"}, revision=revision(gateway)
        )
        assert reply.status == 200, reply
        assert set(sum((asked(wire, 5) for wire in wires), Counter())) == {200}
        for wire in wires:
            wire.close()
