"""docs/reading-the-log.md is true: its code reads what the recorder wrote, and finds what our own reader finds."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gateway.audit.chain import read_position, recorded
from gateway.audit.event import Prediction
from gateway.audit.frame import Events, encoder, expand
from gateway.audit.spool import EpochPath, epoch_path, epochs, read_epoch, segments
from gateway.stages import TIMED_STAGES
from tests.contracts.test_golden import golden_run
from tests.gateway.audit.sim import Log, alive, forget_owner, forget_since, label, settle

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reading-the-log.md"
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
STANDARD = {"struct", "zlib", "hashlib"}


def source_of_page() -> str:
    """All code of the page."""
    return "\n".join(CODE.findall(PAGE.read_text()))


@pytest.fixture(scope="module")
def page() -> Any:
    """The page's functions."""
    names: dict[str, Any] = {}
    exec(compile(source_of_page(), str(PAGE), "exec"), names)  # noqa: S102
    return SimpleNamespace(**names)


@pytest.fixture
def epoch(tmp_path: Path) -> Iterator[EpochPath]:
    """A worker's epoch of several segments: runs of two requests, and whole events."""
    before = alive()
    log = Log(tmp_path)
    writer = log.owner()
    recorder = log.recorder(segment_bytes=1500)
    for value in range(12):
        writer.append_events([label(value), label(value + 100, 9)])
        run = golden_run()
        run.batch_id = value
        run.kind = ("done", "failed") if value % 3 == 0 else ("done",)
        writer.append_run(encoder.encode(run), 2)
        recorder.step()
    writer.close()
    settle(recorder)
    yield epoch_path(log.spool, writer.source.source, writer.source.epoch)
    forget_owner(writer)
    forget_since(before)


def test_its_code_needs_nothing_of_ours():
    """The standard library, and one msgpack decoder; and it is short."""
    imported = set()
    for node in ast.walk(ast.parse(source_of_page())):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert imported == STANDARD | {"msgspec.msgpack"}
    assert all(len(block.splitlines()) <= 22 for block in CODE.findall(PAGE.read_text()))


def test_its_code_reads_what_our_reader_reads(page: Any, epoch: EpochPath):
    """Every number, and of each record what stands in it."""
    listed = segments(epoch)
    assert len(listed) > 3
    theirs = [record for _, path in listed for record in page.records(path)]
    ours = [event for frame in read_epoch(epoch, 0) for event in expand(epoch.source, epoch.epoch, frame)]
    assert [number for number, _ in theirs] == [int(event.id[-16:], 16) for event in ours]
    for (_, record), event in zip(theirs, ours, strict=True):
        assert record["type"] == event.__struct_config__.tag
        if not isinstance(event, Prediction):
            assert msgspec.msgpack.encode(record | {"id": event.id}) == msgspec.msgpack.encode(event)
            continue
        for name in ("rows", "received_ns", "done_ns", "request_id", "kind", "capture"):
            assert record.get(name, "done") == getattr(event, name), name
        assert record["model"] == msgspec.to_builtins(event.model)
        assert record["caller"]["endpoint"] == event.endpoint


def test_its_code_finds_our_hash(page: Any, epoch: EpochPath):
    """From the beginning, and from each line of the chain file on."""
    position = read_position(epoch)
    assert position is not None
    paths = [path for _, path in segments(epoch)]
    assert page.chain(paths) == position.value
    named = page.lines(epoch.path / "chain")
    assert named == recorded(epoch)
    for index, (first, _) in enumerate(segments(epoch)):
        assert page.chain(paths[index:], named[first]) == position.value


def test_its_code_refuses_damage(page: Any, epoch: EpochPath):
    """With the file and the byte."""
    path = segments(epoch)[1][1]
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path.name}: no whole frame at byte 0")):
        list(page.frames(path))


def test_its_tables_name_what_a_run_has():
    """Every key of a run frame stands in the page, and the stages in their order."""
    text = PAGE.read_text()
    run = golden_run()
    for name in run.__struct_fields__:
        assert f"`{name}`" in text or name in {"schema", "batch_rows", "batch_row0"}, name
    assert ", ".join(stage for stage in TIMED_STAGES if stage != "infer") in text
    assert "events" in Events.__struct_fields__


def test_its_files_are_there(epoch: EpochPath):
    """The names that the page lists are those that the recorder gives."""
    (spool,) = {path.path.parent.parent for path in epochs(epoch.path.parent.parent)}
    names = {path.name for path in epoch.path.iterdir() if path.suffix != ".idx"}
    assert {"chain", "synced"} <= names
    assert all(re.fullmatch(r"[0-9]{20}\.log|chain|synced|closed", name) for name in names)
    assert (spool / f"{epoch.source:016x}" / "epoch").read_text().strip() == str(epoch.epoch)
    if "closed" in names:
        json.loads((epoch.path / "closed").read_bytes())
