"""How a child begins: scheduling classes, and that it is of its supervisor's version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import gateway
from gateway import process

ROOT = Path(__file__).parents[2]
SHOW = (
    "import threading\n"
    "def show(): print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))\n"
    "threading.Thread(target=show).start()"
)
IDLE = getattr(os, "SCHED_IDLE", -1)


def after(code: str) -> tuple[int, int]:
    """Policy and nice value of a thread that a fresh process starts after `code`."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import os\nfrom gateway import process\n{code}\n{SHOW}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    policy, nice = done.stdout.split()
    return int(policy), int(nice)


REFUSE = "def refuse(*_): raise PermissionError(1, 'no')\nos.sched_setscheduler = refuse\n"


def test_lowest_priority_is_the_idle_class() -> None:
    """The mirror gets what no one else wants; its threads, too."""
    assert after("process.lowest_priority()")[0] == IDLE


def test_who_is_patient_pushes_nobody_off() -> None:
    """The recorder wakes two hundred times a second, and takes its turn as it comes; its threads, too."""
    assert after("process.patient()")[0] == getattr(os, "SCHED_BATCH", -1)


def test_lowest_priority_is_nice_19_where_the_class_is_refused() -> None:
    """A host that does not let us choose the class."""
    assert after(REFUSE + "process.lowest_priority()") == (os.SCHED_OTHER, 19)
    assert after("del os.sched_setscheduler; process.lowest_priority()") == (os.SCHED_OTHER, 19)


def test_a_thread_that_gives_way_leaves_the_others_as_they_are() -> None:
    """Loading shares a process with the loop: only its own thread is nicer."""
    code = "import threading; one = threading.Thread(target=process.give_way); one.start(); one.join()"
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert after(code)[1] == own
    assert after("process.give_way()")[1] == max(own, process.GIVING_NICE)


@pytest.mark.parametrize("call", ["lowest_priority", "patient", "give_way"])
def test_a_host_that_refuses_everything_changes_nothing(call: str) -> None:
    """Priorities are a courtesy: no process fails over them."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert after(f"{REFUSE}os.setpriority = refuse\nprocess.{call}()") == (os.SCHED_OTHER, own)


@pytest.mark.parametrize(("version", "code"), [(gateway.__version__, 0), ("", 0), ("0.0.1", 4)])
def test_a_child_of_another_version_does_not_run(version: str, code: int) -> None:
    """A package that was replaced under a running gateway is told, with what to do."""
    context = process.Context(config="{}", models="/m", state_dir="/s", version=version)
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from gateway import process; process.enter()"],
        env={**context.to_env(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == code, done.stderr
    if code:
        assert len(done.stderr.splitlines()) == 1
        assert f"version {gateway.__version__}, the running gateway 0.0.1" in done.stderr
        assert "`tidegate upgrade`" in done.stderr


def test_what_a_child_writes_is_for_its_user_alone(tmp_path: Path) -> None:
    """Whatever the umask was: labels and states lie in files that no line of ours gives a mode."""
    context = json.dumps(asdict(process.Context(config="{}", models="/m", state_dir=str(tmp_path))))
    made = "import pathlib; pathlib.Path('made').write_text('x')"
    subprocess.run(
        [sys.executable, "-P", "-c", f"from gateway import process; process.enter(); {made}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), process.CONTEXT_VARIABLE: context},
        cwd=tmp_path,
        umask=0,
        check=True,
        timeout=30,
    )
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600
