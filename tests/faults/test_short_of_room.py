"""No room, a failing disk, a spool at its limit: what clients get, what the operator reads, and how it ends."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import statistics
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from gateway.cli.audit import command as audit
from tests.faults.syscalls import fail_at
from tests.faults.troubled import RING_BYTES, SPOOL_BYTES, Troubled, small_disk, start


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Troubled]:
    """One gateway for all: each test leaves it well."""
    tmp = tmp_path_factory.mktemp("troubled")
    with small_disk(tmp / "state") as disk:
        troubled = start(tmp, disk)
        try:
            yield troubled
        finally:
            troubled.end()


@pytest.fixture
def troubled(served: Troubled) -> Troubled:
    """Well at the beginning, and what it said before does not count."""
    served.all_is_well()
    served.begin()
    return served


def test_a_full_disk(troubled: Troubled) -> None:
    """Answers go on by policy, a rollback succeeds, the alarm says what to do; with room again all goes on."""
    gateway = troubled.gateway
    variants = [
        {"name": "primary", "version": "1", "role": "primary", "weight_bp": 9000},
        {"name": "canary", "version": "2", "role": "canary", "weight_bp": 1000},
    ]
    revision = gateway.admin("GET", "routes/lax").content["revision"]
    split = gateway.admin("PUT", "routes/lax", {"variants": variants, "reason": "split"}, revision=revision)
    assert split.status == 200
    troubled.fill()
    troubled.both_policies_apply()
    back = gateway.admin(
        "POST",
        "routes/lax/rollback",
        {"variant": "canary", "reason": "bad"},
        revision=split.content["revision"],
    )
    assert back.status == 200, back
    assert troubled.controls()[-1] == "rollback", "on disk before it was answered, not owed"
    line = troubled.said_once("disk_full")
    assert line["level"] == "error"
    assert "nothing needs a restart" in line["do"]
    troubled.await_true(lambda: troubled.metric("tidegate_recorder_waiting") == 1)
    shown = CliRunner().invoke(audit, ["status", "--state-dir", str(troubled.disk)])
    assert "WORKERS' RECORDS WAIT: disk full" in shown.stdout, shown
    assert troubled.metric("tidegate_recorder_reserve_bytes") == 0
    troubled.await_true(lambda: troubled.metric("tidegate_worker_log_unavailable") == 1)
    ready = gateway.admin("GET", "routes/lax").content
    assert {v["name"]: v["weight_bp"] for v in ready["variants"]}["canary"] == 0
    troubled.empty()
    troubled.all_is_well()
    troubled.await_true(lambda: troubled.metric("tidegate_recorder_reserve_bytes") > 0)
    troubled.said_once("disk_has_room")
    troubled.adds_up()


def test_deaths_on_a_full_disk(troubled: Troubled) -> None:
    """Recorder and worker are killed: their successors start there, a change is made, and no record is lost."""
    gateway = troubled.gateway
    troubled.fill()
    troubled.both_policies_apply()
    for role in ("recorder", "worker"):
        killed = gateway.kill9(role)
        gateway.await_successor(role, killed)
    troubled.ask_until("lax", lambda answer: answer.status == 200)
    revision = gateway.admin("GET", "routes/lax").content["revision"]
    frozen = gateway.admin("POST", "routes/lax/freeze", {"reason": "look"}, revision=revision)
    assert frozen.status == 200, frozen
    assert troubled.controls()[-1] == "freeze"
    thawed = gateway.admin("POST", "routes/lax/thaw", {"reason": "seen"}, revision=frozen.content["revision"])
    assert thawed.status == 200, thawed
    troubled.empty()
    troubled.all_is_well()
    troubled.adds_up()


@pytest.mark.parametrize("error", ["EIO", "EDQUOT"])
def test_a_sync_that_fails(troubled: Troubled, error: str) -> None:
    """However the disk says it, and as long as it does: nobody is told that a record is kept which is not."""
    with troubled.refused(fail_at("fdatasync,fsync,fallocate", error)):
        troubled.both_policies_apply()
        event = "records_cannot_be_written" if error == "EIO" else "disk_full"
        troubled.await_true(lambda: bool(troubled.said(event)))
        name = "failing" if error == "EIO" else "waiting"
        troubled.await_true(lambda: troubled.metric(f"tidegate_recorder_{name}") == 1)
    troubled.all_is_well()
    troubled.adds_up()


def test_writes_that_fail_now_and_then(troubled: Troubled) -> None:
    """Every second one, with EIO, in the middle of a segment: it is cut, and the same records stand in the next."""
    with troubled.refused(fail_at("write", "EIO", "1+2")):
        troubled.await_true(
            lambda: troubled.ask("lax").status == 200 and bool(troubled.said("records_cannot_be_written"))
        )
    troubled.all_is_well()
    troubled.await_true(lambda: bool(troubled.said("records_written_again")))
    troubled.adds_up()


def test_a_disk_that_is_read_only(troubled: Troubled) -> None:
    """EROFS as soon as a new segment is needed; over once it can be written to."""
    with troubled.read_only():
        troubled.both_policies_apply()
        assert troubled.said_once("records_cannot_be_written")["errno"] == "EROFS"
    troubled.all_is_well()
    troubled.await_true(lambda: bool(troubled.said("records_written_again")))
    troubled.adds_up()


@pytest.mark.parametrize(
    ("limit", "value", "error"),
    [(resource.RLIMIT_NOFILE, 3, errno.EMFILE), (resource.RLIMIT_FSIZE, 100, errno.EFBIG)],
)
def test_limits_of_the_recorder(troubled: Troubled, limit: int, value: int, error: int) -> None:
    """No descriptors left, files may not grow: told by name, and over with it."""
    with troubled.limited(limit, value):
        troubled.both_policies_apply()
        # Neither status nor log can be written to then: the worker's word is in memory.
        troubled.await_true(lambda: troubled.metric("tidegate_worker_log_unavailable") == 1)
    troubled.all_is_well()
    assert troubled.said_once("records_written_again")["was"] == os.strerror(error)
    troubled.adds_up()


def test_a_recorder_that_stands_still(troubled: Troubled) -> None:
    """The ring fills; one append timeout, once, then answers go on without a wait; every number is told."""
    well_ms = statistics.median(troubled.ask("lax").ms for _ in range(20))
    os.kill(troubled.recorder, signal.SIGSTOP)
    try:
        said = troubled.both_policies_apply()
        assert said[-1].ms > 45, "the first one waited for its room"
        quick = [troubled.ask("lax") for _ in range(40)]
        assert {(answer.status, answer.audit) for answer in quick} <= {(200, "none"), (200, "spool")}
        assert statistics.median(answer.ms for answer in quick) < well_ms + 45, "a wait would take 50 ms more"
        assert troubled.ask("strict").code == "audit_unavailable"
    finally:
        os.kill(troubled.recorder, signal.SIGCONT)
    troubled.all_is_well()
    troubled.adds_up()


def test_a_spool_that_was_removed(troubled: Troubled) -> None:
    """Begun anew; what was in it is told by a gap, and what comes is kept."""
    lost = dict(troubled.answered)
    shutil.rmtree(troubled.spool)
    troubled.await_true(lambda: bool(troubled.said("spool_removed")))
    troubled.all_is_well()
    new = {identity: audit for identity, audit in troubled.answered.items() if identity not in lost}
    # Between the removal and its being found, records went where nobody finds them: a gap tells those, too.
    last = list(new)[-1]
    troubled.answered = {last: new[last]}
    troubled.adds_up()


def test_a_spool_at_its_limit(troubled: Troubled) -> None:
    """Kafka takes nothing: nothing that it has not is removed, control's changes are made, and it ends by itself."""
    at_limit = troubled.ask_until(
        "lax", lambda answer: answer.audit == "none" and bool(troubled.said("spool_at_limit")), 60
    )
    assert {answer.status for answer in at_limit} == {200}
    assert troubled.ask("strict").code == "audit_unavailable"
    assert SPOOL_BYTES - 65_536 < troubled.spool_bytes() < SPOOL_BYTES + 2 * RING_BYTES
    assert "audit.max_bytes" in troubled.said_once("spool_at_limit")["do"]
    troubled.await_true(lambda: any(line["percent"] == 95 for line in troubled.said("spool_filling")))
    percents = [line["percent"] for line in troubled.said("spool_filling")]
    assert percents == sorted(set(percents)), "each once"
    assert troubled.metric("tidegate_recorder_spool_fill") > 0.95
    revision = troubled.gateway.admin("GET", "routes/lax").content["revision"]
    frozen = troubled.gateway.admin("POST", "routes/lax/freeze", {"reason": "look"}, revision=revision)
    assert frozen.status == 200, frozen
    assert troubled.controls()[-1] == "freeze"
    troubled.forward_all()
    troubled.all_is_well()
    troubled.said_once("spool_below_limit")
    assert len(troubled.said("spool_at_limit")) == 1, "it does not swing"
    troubled.await_true(lambda: troubled.metric("tidegate_recorder_trimmed_segments") > 0)
