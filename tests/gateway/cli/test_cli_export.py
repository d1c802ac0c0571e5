"""`tidegate audit export` and the filters that all readers of the log share, over a spool made here."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet
import pytest
from test_cli_audit import PREFIX, SOURCE, prediction, write

from gateway.audit.event import Control, Heartbeat, ModelFacts, Prediction, Tensor, decode_event
from gateway.audit.feed import Delivery
from gateway.cli.filters import Filter, Moment
from gateway.cli.tailing import up_to_now

HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS


def refused(at_ns: int) -> Prediction:
    """A request that was turned away."""
    return Prediction(
        kind="refused", done_ns=at_ns, status=503, code="overloaded", model=ModelFacts("flights", None)
    )


@pytest.fixture
def at(state_dir: Path) -> tuple[str, str]:
    """A state directory with predictions of two models, a refusal and a shift; the arguments that lead there."""
    other = msgspec.structs.replace(prediction("b", 2 * HOUR_NS, "other"), model=ModelFacts("other", "7"))
    write(state_dir, SOURCE, [[prediction("a", HOUR_NS), Heartbeat(at_ns=5)], [other, refused(3 * HOUR_NS)]])
    write(state_dir, SOURCE + 1, [[Control("shift", model="flights", revision=13, at_ns=4 * HOUR_NS)]])
    return ("--state-dir", str(state_dir))


def kinds(text: str) -> list[str]:
    """type.kind of each JSON line."""
    return [f"{event['type']}.{event['kind']}" for event in map(json.loads, text.splitlines())]


def test_all_records_go_to_a_pipe_as_they_are(run, at) -> None:
    """Without a file they are JSON lines on stdout, each whole; heartbeats are left out."""
    result = run("audit", "export", *at)
    assert sorted(kinds(result.stdout)) == [
        "control.shift", "prediction.done", "prediction.done", "prediction.refused"
    ]  # fmt: skip
    first = next(line for line in result.stdout.splitlines() if '"request_id":"a"' in line)
    event = decode_event(first.encode())
    assert isinstance(event, Prediction)
    assert event.inputs == prediction("a", HOUR_NS).inputs


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (("--model", "other"), ["prediction.done"]),
        (("--version", "7"), ["prediction.done"]),
        (("--code", "overloaded"), ["prediction.refused"]),
        (("--code", "503"), ["prediction.refused"]),
        (("--code", "shift"), ["control.shift"]),
        (("--code", "refused"), ["prediction.refused"]),
        (("--type", "control"), ["control.shift"]),
        (("--type", "heartbeat"), ["heartbeat.heartbeat"]),
        (("--since", "1970-01-01T03:00", "--until", "1970-01-01T04:00Z"), ["prediction.refused"]),
        (("--since", "1970-01-01T05:00+01:00"), ["control.shift"]),
        (("--since", "1h"), []),
    ],
)
def test_filters_choose_records(run, at, asked: tuple[str, ...], found: list[str]) -> None:
    """By type, model, version, code and time, together; `audit tail` takes the same."""
    assert kinds(run("audit", "export", *asked, *at).stdout) == found
    assert kinds(run("audit", "tail", "--json", *asked, *at).stdout) == found


def test_a_file_is_private_and_whole(run, at, tmp_path: Path) -> None:
    """What people sent is for the owner's eyes; under its name there is a whole file or none."""
    path = tmp_path / "out.jsonl"
    result = run("audit", "export", str(path), *at)
    assert result.exit_code == 0
    assert result.stdout == f"4 records in {path}\n"
    assert len(kinds(path.read_text())) == 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in tmp_path.glob("out*")] == ["out.jsonl"]


def test_parquet_has_a_row_for_each_prediction(run, at, tmp_path: Path) -> None:
    """Facts stand in columns, tensors as JSON by name, times in UTC."""
    path = tmp_path / "out.parquet"
    assert run("audit", "export", str(path), *at).stdout == f"3 predictions in {path}\n"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [(row["model"], row["version"], row["status"], row["code"]) for row in rows] == [
        ("flights", "2", 200, None), ("other", "7", 200, None), ("flights", None, 503, "overloaded")
    ]  # fmt: skip
    assert json.loads(rows[0]["inputs"]) == {"X": [[1.5, -2.0]]}
    assert json.loads(rows[0]["outputs"]) == {"name": ["ok"]}
    assert rows[0]["done_at"].isoformat() == "1970-01-01T01:00:00+00:00"
    assert (rows[0]["served"], rows[0]["weight_bp"], rows[0]["reason"]) == ("canary", 1000, "weight")


def test_redacted_cells_say_so(run, state_dir: Path, tmp_path: Path) -> None:
    """A zero that stands for what must not be kept is told from a zero, in a file and on a screen."""
    said = [{"input": "X", "feature": "zip", "how": "drop"}]
    event = msgspec.structs.replace(prediction("r", HOUR_NS), redacted=said)
    write(state_dir, SOURCE, [[event]])
    path = tmp_path / "out.parquet"
    run("audit", "export", str(path), "--state-dir", str(state_dir))
    (row,) = pyarrow.parquet.read_table(path).to_pylist()
    assert json.loads(row["redacted"]) == said
    shown = run("audit", "get", PREFIX + "0" * 16, "--state-dir", str(state_dir)).stdout
    assert "X, zip: drop" in shown


def test_a_log_that_grows_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export beside a running gateway ends where the log ended when it began, whatever times records say."""

    class Growing:
        reads = 0

        @property
        def positions(self) -> dict[str, int]:
            return {"one": self.reads}

        def read(self, max_events: int, wait_ms: int) -> Delivery:
            self.reads += 1
            assert self.reads < 100
            # A clock that was ahead for a while, and set back.
            at_ns = time.time_ns() + 3600 * 10**9 if self.reads < 8 else 5
            return Delivery([Heartbeat(at_ns=at_ns)], [])

        def ends(self) -> dict[str, int]:
            return {"one": 20}

        def close(self) -> None:
            pass

    assert sum(len(events) for events in up_to_now(Growing(), 0)) == 20


def test_tensors_by_hash_keep_their_digest(run, state_dir: Path, tmp_path: Path) -> None:
    """Where the log has no data the file says which it was."""
    event = msgspec.structs.replace(
        prediction("h", HOUR_NS), inputs=[Tensor("X", "FP32", (1, 2), None, "ab" * 32)], capture="hash"
    )
    write(state_dir, SOURCE, [[event]])
    path = tmp_path / "out.parquet"
    run("audit", "export", str(path), "--state-dir", str(state_dir))
    (row,) = pyarrow.parquet.read_table(path).to_pylist()
    assert json.loads(row["inputs"]) == {"X": {"sha256": "ab" * 32}}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--format", "parquet"), "Parquet needs a file"),
        (("no/such/dir/out.jsonl",), "no/such/dir/out.jsonl: No such file or directory"),
        (("--since", "yesterday"), "'yesterday'; expected 2026-11-27"),
        (("/dev/null",), "/dev/null is no plain file"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(run, at, args: tuple[str, ...], said: str) -> None:
    """Exit 2 and what to do."""
    result = run("audit", "export", *args, *at)
    assert result.exit_code == 2
    assert said in result.stderr


def test_ago_counts_back_from_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """`90m` is ninety minutes before now."""
    monkeypatch.setattr("time.time_ns", lambda: DAY_NS)
    assert Moment().convert("90m", None, None) == DAY_NS - 90 * 60 * 10**9
    assert Moment().convert("1d", None, None) == 0


def test_an_event_at_the_edge_belongs_to_one_side() -> None:
    """`--since` holds the moment itself, `--until` does not: two neighbouring exports share no record."""
    event = prediction("a", 100)
    assert Filter(since_ns=100).keeps(event)
    assert not Filter(until_ns=100).keeps(event)


def test_parquet_tells_nan_from_nothing(run, state_dir: Path, tmp_path: Path) -> None:
    """What was not finite stands there as NaN and Infinity, not as a missing value."""
    values = np.array([[1.5, np.nan, np.inf, -np.inf]], np.float32)
    inputs = [
        Tensor("X", "FP32", (1, 4), values.tobytes()),
        Tensor("é", "BYTES", (1,), b"\x02\x00\x00\x00\xc3\xa9"),
    ]
    write(state_dir, SOURCE, [[msgspec.structs.replace(prediction("a", HOUR_NS), inputs=inputs)]])
    path = tmp_path / "out.parquet"
    assert run("audit", "export", str(path), "--state-dir", str(state_dir)).exit_code == 0
    (row,) = pyarrow.parquet.read_table(path).to_pylist()
    assert row["inputs"] == '{"X":[[1.5,NaN,Infinity,-Infinity]],"é":["é"]}'
