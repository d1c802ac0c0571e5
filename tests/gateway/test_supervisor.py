"""The supervisor's rules on small stand-ins for its children, and on the real tree of processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import gateway.config
from bench.serving import Gateway
from gateway import fleet as words_of
from gateway import supervisor as module
from gateway.process import Context
from gateway.supervisor import Child, Supervisor, backoff_s, is_installed, is_stalled, plan

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "models"
WITHIN_S = 20.0


def until(what: str, holds: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def stub(role: str, code: str, index: int | None = None) -> Child:
    """A child that runs a line of Python."""
    return Child(role=role, argv=[sys.executable, "-S", "-c", code], index=index)


SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """A supervisor in this process, with no children yet; signals are put back behind it."""
    (tmp_path / "models").mkdir()
    config = gateway.config.load(
        overrides=["data.port=0", "admin.port=0", "audit.ring=state_dir"], environ={}
    )[0]
    made = Supervisor(
        Context(
            config=gateway.config.encode(config),
            models=str(tmp_path / "models"),
            state_dir=str(tmp_path / "state"),
        )
    )
    made.children = []
    kept = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
    yield made
    signal.set_wakeup_fd(-1)
    for number, handler in kept.items():
        signal.signal(number, handler)
    for child in made.children:
        if child.process is not None and child.process.poll() is None:
            child.process.kill()
            child.process.wait()
    made.close()


def run_until(supervisor: Supervisor, holds: Callable[[], bool]) -> int:
    """Run it; SIGTERM to ourselves when the condition holds (or after the limit)."""

    def watch() -> None:
        deadline = time.monotonic() + WITHIN_S
        while not holds() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return supervisor.run()
    finally:
        watcher.join()


def test_backoff_doubles_from_nothing_to_ten_seconds() -> None:
    """At once, then 0.1 s doubling, never above 10 s."""
    assert [backoff_s(n) for n in range(5)] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert backoff_s(50) == 10.0


def test_recorder_starts_first_and_forwarder_only_with_kafka() -> None:
    """Nobody appends before the recorder is there; each role inherits only its own socket."""
    children = plan(2, kafka=True, sidecar=False, data_fd=7, admin_fd=8)[:5]
    assert [c.name for c in children] == ["recorder", "control", "worker-0", "worker-1", "forwarder"]
    assert [c.extra_fds for c in children] == [(), (8,), (7,), (7,), ()]
    assert children[3].argv[1:] == ["-P", "-m", "gateway.worker", "--index", "1"]
    assert [c.role for c in plan(1, kafka=False, sidecar=False, data_fd=7, admin_fd=8)][:3] == [
        "recorder",
        "control",
        "worker",
    ]


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize("installed", [("sidecar", "mirror"), ("mirror",), ()])
def test_only_what_is_installed_and_configured_is_planned(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], sidecar: bool
) -> None:
    """The sidecar follows its setting, the mirror waits until it is wanted; neither without its module."""
    monkeypatch.setattr(module, "is_installed", lambda name: name.removeprefix("shadow.") in installed)
    children = plan(1, kafka=True, sidecar=sidecar, data_fd=7, admin_fd=8)[4:]
    expected = [role for role in installed if sidecar or role == "mirror"]
    assert [c.name for c in children] == expected
    assert [c.wanted for c in children] == [role == "sidecar" for role in expected]
    assert [c.argv[1:] for c in children] == [["-P", "-m", f"shadow.{role}"] for role in expected]
    assert all(c.optional and not c.extra_fds for c in children)


def test_a_module_is_looked_for_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not there, nor its package, is not installed; looking runs nothing of the module itself."""
    (tmp_path / "lying").mkdir()
    (tmp_path / "lying" / "__init__.py").touch()
    (tmp_path / "lying" / "there.py").write_text("raise SystemExit(9)")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("lying.there")
    assert not is_installed("lying.elsewhere")
    assert not is_installed("nowhere.at_all")


def test_only_a_starting_or_serving_worker_can_stall() -> None:
    """A start may take longer than a turn of the loop; draining has its own limit."""
    assert is_stalled(words_of.SERVING, 5.1)
    assert not is_stalled(words_of.SERVING, 4.9)
    assert is_stalled(words_of.STARTING, 30.1)
    assert not is_stalled(words_of.STARTING, 29.9)
    assert not is_stalled(words_of.DRAINING, 60)
    assert not is_stalled(words_of.DOWN, 60)


def test_dead_child_starts_again(supervisor: Supervisor, caplog: pytest.LogCaptureFixture) -> None:
    """The first restart comes at once, then with back-off; a dead worker's gauges are zeroed and counted."""
    caplog.set_level(logging.INFO)
    words = supervisor._fleet.worker(0)
    words[words_of.STATE], words[words_of.INFLIGHT] = words_of.SERVING, 3
    worker = stub("worker", "raise SystemExit(9)", index=0)
    supervisor.children = [stub("recorder", SLEEP), worker]
    assert run_until(supervisor, lambda: worker.lives >= 3) == 0
    assert (words[words_of.STATE], words[words_of.INFLIGHT]) == (words_of.DOWN, 0)
    assert words[words_of.RESTARTS] >= 2
    waits = [vars(r)["again_in_s"] for r in caplog.records if r.message == "child_died"]
    assert waits[:2] == [0.0, 0.1]


def test_refusal_in_the_first_life_stops_all(supervisor: Supervisor) -> None:
    """Exit 2 of a child at first start means a wrong configuration: exit 2, nobody is left."""
    supervisor.children = [stub("recorder", SLEEP), stub("control", "raise SystemExit(2)")]
    assert supervisor.run() == 2
    assert [c.lives for c in supervisor.children] == [1, 1]
    assert all(c.process is None or c.process.returncode is not None for c in supervisor.children)


def test_refusal_in_a_later_life_is_one_more_death(supervisor: Supervisor, tmp_path: Path) -> None:
    """Serving goes on when control cannot come back."""
    once = tmp_path / "once"
    code = (
        f"import pathlib; p = pathlib.Path({str(once)!r}); n = p.exists(); p.touch(); raise SystemExit(2 * n)"
    )
    control = stub("control", code)
    supervisor.children = [stub("recorder", SLEEP), control]
    assert run_until(supervisor, lambda: control.lives >= 3) == 0


def test_refusal_after_a_healthy_life_is_one_more_death(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran for a while was configured well enough to start."""
    monkeypatch.setattr(module, "HEALTHY_S", 0.0)
    control = stub("control", "raise SystemExit(2)")
    supervisor.children = [stub("recorder", SLEEP), control]
    assert run_until(supervisor, lambda: control.lives >= 2) == 0


@pytest.mark.parametrize("role", ["sidecar", "mirror"])
def test_refusal_of_what_serving_does_not_need_stops_nothing(
    supervisor: Supervisor, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and tried again after the longest wait."""
    caplog.set_level(logging.INFO)
    supervisor._fleet.publish_shadows(1)
    refusing, recorder = stub(role, "raise SystemExit(2)"), stub("recorder", SLEEP)
    supervisor.children = [recorder, refusing]
    waits: list[float] = []

    def told() -> bool:
        waits.extend(vars(r)["again_in_s"] for r in caplog.records if r.message == "child_refused_to_start")
        return bool(waits)

    assert run_until(supervisor, told) == 0
    assert waits[0] == module.BACKOFF_S[1]
    assert (refusing.lives, recorder.lives) == (1, 1)
    assert refusing.start_at_s > time.monotonic() + module.BACKOFF_S[1] / 2


def test_mirror_runs_while_a_route_has_a_shadow(supervisor: Supervisor) -> None:
    """Started when the fleet's word rises, ended when it falls, started again, and never unasked."""
    mirror, recorder = stub("mirror", SLEEP), stub("recorder", SLEEP)
    mirror.wanted = False
    supervisor.children = [recorder, mirror]
    fleet = supervisor._fleet
    seen: list[str] = []

    def story() -> bool:
        runs = mirror.process is not None and mirror.process.returncode is None
        if not seen and recorder.lives and recorder.process is not None:
            seen.append(f"unasked {runs}")
            fleet.publish_shadows(2)
        elif len(seen) == 1 and runs:
            seen.append("runs")
            fleet.publish_shadows(0)
        elif len(seen) == 2 and mirror.process is None:
            seen.append(f"ended {mirror.lives}")
            fleet.publish_shadows(1)
        return len(seen) == 3 and mirror.lives == 2

    assert run_until(supervisor, story) == 0
    assert seen == ["unasked False", "runs", "ended 1"]
    assert mirror.failures == 0


def test_mirror_that_does_not_end_is_killed(supervisor: Supervisor) -> None:
    """SIGTERM when it is no longer wanted, SIGKILL ten seconds later, and no start after that."""
    deaf = stub("mirror", f"import signal; signal.signal(15, signal.SIG_IGN); {SLEEP}")
    supervisor.children = [deaf]
    supervisor._fleet.publish_shadows(1)
    supervisor._follow_shadows()
    supervisor._start_due()
    process = deaf.process
    assert process is not None
    until("deaf", lambda: int(_status(process.pid, "SigIgn"), 16) & 1 << (signal.SIGTERM - 1) != 0)
    supervisor._fleet.publish_shadows(0)
    supervisor._follow_shadows()
    supervisor._follow_shadows()
    assert deaf.ending_s is not None
    assert process.poll() is None
    deaf.ending_s -= module.END_S + 0.1
    supervisor._follow_shadows()
    assert process.wait(5) == -signal.SIGKILL
    supervisor._reap()
    supervisor._start_due()
    assert (deaf.process, deaf.lives, deaf.failures) == (None, 1, 0)


def _status(pid: int, name: str) -> str:
    """A line of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in text.splitlines() if line.startswith(name))


def test_a_wait_for_what_is_not_wanted_is_no_spin(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that no one asked for does not make the supervisor turn without rest."""
    waits: list[float] = []

    class Poll:
        """Says how long it was asked to wait."""

        def register(self, fd: int, events: int) -> None:
            assert fd >= 0

        def poll(self, timeout_ms: float) -> None:
            waits.append(timeout_ms / 1000)

    monkeypatch.setattr(module.select, "poll", Poll)
    mirror = stub("mirror", SLEEP)
    supervisor.children = [mirror]
    supervisor._follow_shadows()
    supervisor._wait(0.25)
    supervisor._fleet.publish_shadows(1)
    supervisor._follow_shadows()
    supervisor._wait(0.25)
    assert waits == [0.25, 0.0]


def test_roles_stop_one_after_another(supervisor: Supervisor, tmp_path: Path) -> None:
    """Who appends ends first, the recorder last: each is told only when the one before it is gone."""
    order = tmp_path / "order"
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        f"    with open({str(order)!r}, 'a') as f: f.write(NAME + ' ')\n"
        "    time.sleep(0.05); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(tmp_path)!r}, 'up-' + NAME).touch()\n"
        "time.sleep(60)"
    )
    roles = ("recorder", "control", "worker", "forwarder", "sidecar", "mirror")
    supervisor.children = [stub(role, f"NAME = {role!r}\n{code}") for role in roles]
    supervisor._fleet.publish_shadows(1)
    assert run_until(supervisor, lambda: len(list(tmp_path.glob("up-*"))) == len(roles)) == 0
    assert order.read_text().split() == ["worker", "sidecar", "mirror", "control", "forwarder", "recorder"]


def test_child_that_cannot_be_started_is_tried_again(supervisor: Supervisor) -> None:
    """A failing fork stops nothing."""
    broken = Child(role="forwarder", argv=["/nonexistent/python"])
    alive = stub("recorder", SLEEP)
    supervisor.children = [broken, alive]
    assert run_until(supervisor, lambda: broken.failures >= 2) == 0
    assert alive.lives == 1


def test_recorder_dead_at_the_stop_comes_back_to_drain(supervisor: Supervisor, tmp_path: Path) -> None:
    """What is in the rings gets to disk even when the recorder is in back-off as the stop comes."""
    drained = tmp_path / "drained"
    code = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(drained)!r}).touch(), sys.exit(0)))\n"
        "time.sleep(60)"
    )
    recorder = stub("recorder", code)
    recorder.start_at_s = time.monotonic() + 60
    other = stub("forwarder", SLEEP)
    supervisor.children = [recorder, other]
    assert run_until(supervisor, lambda: other.lives == 1) == 0
    assert drained.exists()


def test_second_signal_kills(supervisor: Supervisor) -> None:
    """Who does not drain is killed by a second signal, without the wait."""
    deaf = stub(
        "worker", f"import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); {SLEEP}", index=0
    )
    supervisor.children = [deaf]
    started = time.monotonic()

    def stopping() -> bool:
        if deaf.process is not None and time.monotonic() - started > 0.5:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            return True
        return False

    assert run_until(supervisor, stopping) == 0
    assert deaf.process is not None
    assert deaf.process.returncode == -signal.SIGKILL
    assert time.monotonic() - started < module.DRAIN_S / 2


def test_stalled_worker_is_asked_for_its_stacks_then_killed(supervisor: Supervisor) -> None:
    """SIGABRT first, SIGKILL half a second later when that did not end it."""
    deaf = stub("worker", f"import signal; signal.signal(6, signal.SIG_IGN); {SLEEP}", index=0)
    supervisor.children = [deaf]
    supervisor._start_due()
    assert deaf.process is not None
    words = supervisor._fleet.worker(0)
    words[words_of.PID], words[words_of.STATE] = deaf.process.pid, words_of.SERVING
    words[words_of.HEARTBEAT_NS] = time.monotonic_ns() - 6_000_000_000
    supervisor._check_heartbeats()
    assert deaf.dumped_s is not None
    deaf.dumped_s -= module.DUMP_S + 0.1
    supervisor._check_heartbeats()
    deaf.process.wait(5)
    assert deaf.process.returncode in {-signal.SIGKILL, -signal.SIGABRT}


def test_old_beats_are_no_evidence_after_a_pause(supervisor: Supervisor) -> None:
    """When the whole container stood still, its workers get time to beat again."""
    worker = stub("worker", SLEEP, index=0)
    supervisor.children = [worker]
    supervisor._start_due()
    assert worker.process is not None
    words = supervisor._fleet.worker(0)
    words[words_of.PID], words[words_of.STATE] = worker.process.pid, words_of.SERVING
    words[words_of.HEARTBEAT_NS] = time.monotonic_ns() - 60_000_000_000
    supervisor._checked_s -= 60
    supervisor._check_heartbeats()
    assert worker.dumped_s is None


def test_endpoints_live_as_long_as_the_gateway(supervisor: Supervisor, tmp_path: Path) -> None:
    """The CLI finds the addresses while it runs, 0600, and nothing behind it."""
    path = tmp_path / "state" / "endpoints.json"
    seen: list[dict[str, object]] = []

    def read() -> bool:
        if path.exists():
            seen.append({**json.loads(path.read_text()), "mode": path.stat().st_mode & 0o777})
        return bool(seen)

    assert run_until(supervisor, read) == 0
    assert seen[0] == {
        "data_url": supervisor.context.data_url,
        "admin_url": supervisor.context.admin_url,
        "pid": os.getpid(),
        "mode": 0o600,
    }
    assert not path.exists()
    assert not Path(supervisor.context.ring_dir).exists()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The whole tree over the example models."""
    served = Gateway(EXAMPLES, tmp_path_factory.mktemp("real") / "state")
    try:
        served.start(30)
        yield served
        assert served.stop() == 0, served.said()
        assert not (served.state_dir / "endpoints.json").exists()
    finally:
        served.kill9_all()


def test_second_gateway_exits_2(real: Gateway) -> None:
    """The real command: one line behind the memory plan, no traceback, the holder's pid, exit 2."""
    done = subprocess.run(real.command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2, done.stderr
    *plan, told = done.stderr.splitlines()
    assert len(plan) == 1
    assert f"pid {real.pid};" in told


@pytest.mark.parametrize("role", ["recorder", "control", "worker"])
def test_killed_child_has_a_successor(real: Gateway, role: str) -> None:
    """kill -9 of any role: the same supervisor has a new one within seconds."""
    killed = real.kill9(role)
    real.await_successor(role, killed, 10)
    until("ready again", real._ready)


def test_stopped_worker_is_replaced(real: Gateway) -> None:
    """A worker whose loop stands still for five seconds is killed and replaced."""
    stopped = real.pids("worker")[0]
    os.kill(stopped, signal.SIGSTOP)
    real.await_successor("worker", stopped, 15)
    until("ready again", real._ready)
    assert "worker_stalled" in real.log.read_text()


def test_killed_supervisor_leaves_no_orphans(real: Gateway) -> None:
    """kill -9 of the supervisor takes every child along, and the next start takes the state over."""
    children = [pid for role in ("worker", "recorder", "control") for pid in real.pids(role)]
    assert len(children) == 3
    os.kill(real.pid, signal.SIGKILL)
    until("children gone", lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    real.kill9_all()
    real.start(30)
    assert real.stop() == 0, real.said()
