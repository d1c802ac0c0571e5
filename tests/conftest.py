"""What all tests share: telemetry off, real Kafka on request, and a closing table of what was absent."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import pytest
from hypothesis import settings

from gateway import doctor

pytest_plugins = ["tests.fixtures_flights", "tests.fixtures_kafka", "tests.kafka.guarded"]

# How long one example takes is the machine's business: on a busy one, any may take long.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

TOOLS = ("java", "mvn", "kcat", "openssl", "strace", "nginx", "haproxy", "wrk")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Processes and proofs last: what fails fast should fail first."""
    order = {"e2e": 1, "kafka": 1, "faults": 2}
    items.sort(key=lambda item: max((order.get(part, 0) for part in item.path.parts), default=0))


def pytest_collection_finish() -> None:
    """What was imported stays: no collection in the middle of a test looks through it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Under CI nothing may be skipped for want of a tool: `.ci/run` installs them all."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure in CI: {report.longrepr}"


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where Python is told to write no bytecode, the hundreds of processes of a run would each compile all modules."""
    with pytest.MonkeyPatch.context() as patched:
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):
            patched.delenv("PYTHONDONTWRITEBYTECODE")
            patched.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("bytecode")))
        yield


@pytest.fixture(autouse=True)
def _no_log_outlives_its_test() -> Iterator[None]:
    """Rings and locks that a test's own log holds are let go with it."""
    from tests.gateway.audit import sim

    before = sim.alive()
    yield
    sim.forget_since(before)


def pytest_terminal_summary(terminalreporter) -> None:
    """Tools that are missing here, what they are for and how to get them."""
    missing = [check for check in doctor.checks() if check.name in TOOLS and not check.ok]
    if missing:
        terminalreporter.section("absent here; what needs them was skipped")
        for check in missing:
            terminalreporter.write_line(f"{check.name:8} get it with: {check.how_to_get}")
    # A skipped report's longrepr is (file, line, reason).
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", ())]
    reasons = {reason[2] for reason in skipped if isinstance(reason, tuple)}
    if reasons:
        terminalreporter.section("why tests were skipped")
        for reason in sorted(reasons):
            terminalreporter.write_line(reason.removeprefix("Skipped: "))
