"""The supervisor's rules on small stand-ins for its children, and on the real tree of processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.serving import Gateway
from gateway import children as children_module
from gateway import fleet as words_of
from gateway import supervisor as module
from gateway.children import Child, backoff_s, is_installed, jittered_s, plan
from gateway.supervisor import Supervisor
from tests.gateway.supervising import ROOT, SLEEP, is_deaf, run_until, stub, until
from tests.gateway.supervising import supervisor as supervisor  # a fixture

EXAMPLES = ROOT / "examples" / "models"


def test_backoff_doubles_from_nothing_to_ten_seconds() -> None:
    """At once, then 0.1 s doubling, never above 10 s."""
    assert [backoff_s(n) for n in range(5)] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert backoff_s(50) == 10.0


def test_waits_differ_by_a_fifth_at_most() -> None:
    """What died together does not come back together; who need not wait does not."""
    waits = {jittered_s(1.0) for _ in range(200)}
    assert len(waits) > 100
    assert min(waits) >= 0.8
    assert max(waits) <= 1.2
    assert jittered_s(0.0) == 0.0


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
    monkeypatch.setattr(
        children_module, "is_installed", lambda name: name.removeprefix("shadow.") in installed
    )
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
    assert waits[0] == 0.0
    assert 0.08 <= waits[1] <= 0.12
    assert supervisor._roster.counts["worker"]["exit"] >= 2


def test_refusal_in_the_first_life_stops_all(supervisor: Supervisor) -> None:
    """Exit 2 of a child at first start means a wrong configuration: exit 2, nobody is left."""
    supervisor.children = [stub("recorder", SLEEP), stub("control", "raise SystemExit(2)")]
    assert supervisor.run() == 2
    assert [c.lives for c in supervisor.children] == [1, 1]
    assert all(c.process is None or c.process.returncode is not None for c in supervisor.children)


def test_a_child_of_another_version_is_told_and_stops_nothing(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """Exit 4, also of a first life: the others serve on, and the log says what to do."""
    recorder, control = stub("recorder", SLEEP), stub("control", "raise SystemExit(4)")
    supervisor.children = [recorder, control]
    assert run_until(supervisor, lambda: control.lives >= 2) == 0
    told = [vars(r) for r in caplog.records if r.message == "package_replaced_under_the_gateway"]
    assert "tidegate upgrade" in told[0]["todo"]
    assert recorder.lives == 1
    assert supervisor._roster.counts["control"]["refused"] >= 1


def test_dying_again_and_again_is_told(supervisor: Supervisor, caplog: pytest.LogCaptureFixture) -> None:
    """Five deaths within a minute; in the log, and in the roster for whoever looks."""
    dying = stub("forwarder", "raise SystemExit(9)")
    supervisor.children = [stub("recorder", SLEEP), dying]
    assert run_until(supervisor, lambda: dying.is_crash_looping(time.monotonic())) == 0
    assert len(dying.deaths) == 5
    until("told", lambda: "child_crash_loops" in [r.message for r in caplog.records])


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
    assert waits[0] == children_module.BACKOFF_S[1]
    assert (refusing.lives, recorder.lives) == (1, 1)
    assert refusing.start_at_s > time.monotonic() + children_module.BACKOFF_S[1] / 2


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
    supervisor._follow_wanted()
    supervisor._start_due()
    process = deaf.process
    assert process is not None
    until("deaf", lambda: is_deaf(deaf))
    supervisor._fleet.publish_shadows(0)
    supervisor._follow_wanted()
    supervisor._follow_wanted()
    assert deaf.ending_s is not None
    assert process.poll() is None
    deaf.ending_s -= children_module.END_S + 0.1
    supervisor._follow_wanted()
    assert process.wait(5) == -signal.SIGKILL
    supervisor._reap()
    supervisor._start_due()
    assert (deaf.process, deaf.lives, deaf.failures) == (None, 1, 0)


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
    supervisor._follow_wanted()
    supervisor._wait(0.25)
    supervisor._fleet.publish_shadows(1)
    supervisor._follow_wanted()
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
    """Who does not drain is killed by a second signal, without the wait, and the exit code says so."""
    deaf = stub(
        "worker", f"import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); {SLEEP}", index=0
    )
    supervisor.children = [deaf]
    started = time.monotonic()

    def stopping() -> bool:
        if is_deaf(deaf):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            return True
        return False

    assert run_until(supervisor, stopping) == module.DRAINED_BADLY
    assert deaf.process is not None
    assert deaf.process.returncode == -signal.SIGKILL
    assert time.monotonic() - started < children_module.DRAIN_S / 2


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
        served.start()
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
    """kill -9 of any role: the same supervisor has a new one."""
    killed = real.kill9(role)
    real.await_successor(role, killed)
    until("ready again", real._ready)


def test_stopped_worker_is_replaced(real: Gateway) -> None:
    """A worker whose loop stands still is killed, five seconds after its last sign of life at most, and replaced."""
    stopped = real.pids("worker")[0]
    os.kill(stopped, signal.SIGSTOP)
    real.await_successor("worker", stopped)
    until("ready again", real._ready)
    told = [json.loads(line) for line in real.log.read_text().splitlines() if line.startswith("{")]
    stalls = [line["for_s"] for line in told if line["event"] == "worker_stalled"]
    assert stalls and max(stalls) < 5


def test_killed_supervisor_leaves_no_orphans(real: Gateway) -> None:
    """kill -9 of the supervisor takes every child along, and the next start takes the state over."""
    children = [pid for role in ("worker", "recorder", "control") for pid in real.pids(role)]
    assert len(children) == 3
    os.kill(real.pid, signal.SIGKILL)
    until("children gone", lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    real.kill9_all()
    real.start()
    assert real.stop() == 0, real.said()
