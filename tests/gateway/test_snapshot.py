"""The snapshot: whole or refused, and replaced at once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control import snapshot
from gateway.control.snapshot import DesiredVersion, Ledger, Serving
from gateway.errors import SnapshotCorrupt, StateFormatNewer
from gateway.routing import Change, Variant, first_route

ROUTE = first_route("m", "1", "ab" * 16, Change(by="t", reason="line one\nline two\u2028", at_ns=7))
SERVING = Serving(
    gateway_id="00112233aabbccdd",
    generation=31,
    routes={"m": ROUTE},
    versions=(DesiredVersion(model="m", version="1", slot=4),),
)
LEDGER = Ledger(
    last_event="0" * 16 + "-00000001-" + "0" * 16,
    unlogged=({"kind": "freeze", "model": "m"},),
    history={"m": (ROUTE,)},
    next_slot=5,
    unloaded=(("m", "3"),),
    loaded=(("m", "2"),),
)
CONTENT = snapshot.encode(SERVING, LEDGER)


def test_both_parts_come_back() -> None:
    """What was encoded is what is decoded, line breaks in a reason included."""
    assert snapshot.decode(CONTENT) == (SERVING, LEDGER)
    assert snapshot.decode_serving(CONTENT) == SERVING


@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unseen(at: int, flip: int) -> None:
    """Any byte that is another makes the snapshot refused, or changes nothing that is read."""
    changed = CONTENT[:at] + bytes([CONTENT[at] ^ flip]) + CONTENT[at + 1 :]
    with contextlib.suppress(SnapshotCorrupt, StateFormatNewer):
        assert snapshot.decode(changed) == (SERVING, LEDGER)


@given(st.integers(0, len(CONTENT) - 1))
def test_no_cut_goes_unseen(size: int) -> None:
    """A file that ends early is refused."""
    with pytest.raises(SnapshotCorrupt):
        snapshot.decode(CONTENT[:size])


def test_workers_do_not_need_the_ledger() -> None:
    """A ledger that cannot be read keeps no worker from serving; control refuses it."""
    head, serving, ledger, end = CONTENT.split(b"\n")
    broken = b"\n".join((head, serving, b"x" * len(ledger), end))
    assert snapshot.decode_serving(broken) == SERVING
    with pytest.raises(SnapshotCorrupt, match="ledger part does not match"):
        snapshot.decode(broken)


def test_sampled_shadows_are_counted() -> None:
    """Over all routes, those that see any request at all."""
    assert SERVING.sampled_shadows == 0
    arms = tuple(Variant(name=f"s{bp}", version="1", role="shadow", sample_bp=bp) for bp in (0, 1, 10_000))
    route = msgspec.structs.replace(ROUTE, variants=(*ROUTE.variants, *arms))
    serving = msgspec.structs.replace(SERVING, routes={"m": route, "n": ROUTE, "o": route})
    assert serving.sampled_shadows == 4


def test_older_snapshot_has_no_latches() -> None:
    """What was written before there were latches is read as having none."""
    old = msgspec.to_builtins(SERVING)
    del old["routes"]["m"]["latches"]
    assert msgspec.convert(old, Serving) == SERVING


def test_newer_format_is_named() -> None:
    """A snapshot of a newer Tidegate is refused in one sentence with both numbers."""
    head, *rest = CONTENT.split(b"\n")
    newer = msgspec.json.decode(head) | {"format": snapshot.FORMAT + 1}
    content = b"\n".join((msgspec.json.encode(newer), *rest))
    with pytest.raises(StateFormatNewer, match=f"format {snapshot.FORMAT + 1}, .* knows {snapshot.FORMAT}"):
        snapshot.decode(content)


def test_write_replaces_and_is_private(tmp_path: Path) -> None:
    """The file is 0600, whole, and beside it stand the spares alone."""
    path = tmp_path / "snapshot"
    snapshot.write(path, b"old")
    snapshot.write(path, CONTENT)
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o600
    assert {p.name for p in tmp_path.iterdir()} == {"snapshot", *(f"snapshot{s}" for s in snapshot.SPARES)}


def test_failed_write_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the rename, the old one stands; a rest of the try is written over."""
    path = tmp_path / "snapshot"
    snapshot.write(path, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        snapshot.write(path, CONTENT)
    assert path.read_bytes() == b"old"
    snapshot.write(path, CONTENT)
    assert path.read_bytes() == CONTENT


def test_bytes_are_synced_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order: content on disk, rename, directory on disk."""
    steps: list[str] = []
    sync, rename = os.fsync, Path.rename

    def spied_sync(fd: int) -> None:
        steps.append("directory" if os.path.isdir(f"/proc/self/fd/{fd}") else "content")
        sync(fd)

    def spied_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", spied_sync)
    monkeypatch.setattr(Path, "rename", spied_rename)
    snapshot.write(tmp_path / "snapshot", CONTENT)
    assert steps == ["content", "rename", "directory"]
