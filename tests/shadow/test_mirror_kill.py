"""kill -9 of a real mirror at any point: each sampled prediction is answered, once."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.audit.event import Shadow
from gateway.process import Context
from tests.e2e.onnx_models import linear_weights, write_linear
from tests.gateway.audit.sim import Log, forget_owner, until
from tests.shadow.mirrored import array_of, context_of, prediction, route_event

KILLS = 5
WITHIN_S = 120.0
"""A mirror runs only when no one else does."""
EVENTS = 100
"""Between two kills: the first half one by one, the rest in a burst."""


class MirroredLog(Log):
    """A log whose children know the models."""

    def __init__(self, state_dir: Path, models: Path) -> None:
        super().__init__(state_dir)
        self.models = models

    def context(self) -> dict[str, str]:
        """What the supervisor hands to its children."""
        context: Context = context_of(self, self.models)
        return {"TG_CONTEXT": context.to_env()["TG_CONTEXT"]}

    def real_mirror(self) -> subprocess.Popen[bytes]:
        """The mirror's own process, once it follows."""
        child = self.child("-m", "shadow.mirror")
        until(lambda: "mirroring" in self.output(child), WITHIN_S)
        return child

    def answers(self) -> list[Shadow]:
        """Shadow events on disk."""
        return [event for event in self.read() if isinstance(event, Shadow)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[MirroredLog]:
    """A log of its own, models 1 and 2."""
    write_linear(tmp_path / "models", version="1", scale=0.25)
    write_linear(tmp_path / "models", version="2", scale=0.5)
    made = MirroredLog(tmp_path / "state", tmp_path / "models")
    yield made
    made.end_children()


def test_each_prediction_is_answered_once_however_often_the_mirror_dies(log: MirroredLog):
    """Nothing is missing and nothing is said twice, since it reads its own end; outputs are the shadow's."""
    draw = random.Random(14)
    recorder = log.real_recorder()
    worker, control = log.owner("worker", 1 << 20), log.owner("control")
    assert control.append_events([route_event(1, "2")]) is not None
    until(lambda: len(log.read()) > 2)
    mirror = log.real_mirror()
    asked: dict[str, np.ndarray] = {}
    for kill in range(KILLS + 1):
        for i in range(EVENTS):
            values = np.float32([[draw.random() for _ in range(4)]])
            first_seq = worker.append_events([prediction(values)])
            assert first_seq is not None
            asked[worker.event_id(first_seq)] = values
            if i < EVENTS // 2:
                time.sleep(draw.random() * 0.003)
        if kill < KILLS:
            time.sleep(draw.random() * 0.2)
            mirror.send_signal(signal.SIGKILL)
            mirror.wait()
            mirror = log.real_mirror()
    until(lambda: len({answer.derived_from for answer in log.answers()}) == len(asked), WITHIN_S)
    mirror.send_signal(signal.SIGTERM)
    assert mirror.wait(WITHIN_S) == 0, log.output(mirror)
    answers = log.answers()
    assert Counter(answer.derived_from for answer in answers) == Counter(list(asked))
    assert len({answer.id[:25] for answer in answers}) > 2
    for answer in answers:
        expected = asked[answer.derived_from] @ linear_weights(0.5)
        np.testing.assert_allclose(array_of(answer.outputs[0]), expected, atol=1e-4)
    for writer in (worker, control):
        writer.close()
        forget_owner(writer)
    recorder.send_signal(signal.SIGTERM)
    assert recorder.wait(20) == 0, log.output(recorder)
    assert log.verify().ok
