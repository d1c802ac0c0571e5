"""bundle.toml and the digests that name a version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loaders.bundle import BundleSettings, read_bundle
from loaders.errors import BundleInvalid
from tests.loaders.graphs import put

FULL = """schema = 1
owner = "delays@example.org"
tier = "high"
task = "binary"
reference = "reference.npz"
audit = { level = "fsync", on_unavailable = "fail" }
labels = { kind = "class", maturity_s = 86400 }
redact = [{ input = "X", feature = "dest", how = "hash" }]
[inputs.X]
features = ["hour", "dest"]
categorical = ["dest"]
[outputs.probabilities]
kind = "probability"
classes = ["on_time", "late"]
decision = { column = 1, threshold = 0.5 }
"""


def test_nothing_is_needed(tmp_path: Path) -> None:
    """A version without bundle.toml has the defaults."""
    bundle = read_bundle(put(tmp_path, b"x"))
    assert (bundle.settings, bundle.reference_sha256) == (BundleSettings(), None)


def test_all_that_can_be_said(tmp_path: Path) -> None:
    """Every key of the documented example is read."""
    directory = put(tmp_path, b"x", bundle=FULL)
    (directory / "reference.npz").write_bytes(b"r")
    bundle = read_bundle(directory)
    assert bundle.settings.audit.level == "fsync"
    assert bundle.settings.outputs["probabilities"].decision is not None
    assert bundle.settings.redact[0].feature == "dest"
    assert bundle.reference_sha256 is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ownr = 'x'", "unknown field `ownr`"),
        ("[audit]\nlevle = 'none'", r"unknown field `levle` - at `\$\.audit`"),
        ("[audit]\nlevel = 'maybe'", r"maybe.*audit\.level"),
        ("schema = 2", "schema"),
        ("[labels]\nmaturity_s = -1", r"labels\.maturity_s"),
        ("owner = ", "Invalid value"),
        ("card = 'README.md'", "names 'README.md', which is not there"),
        ("golden = '../../secret'", "'../../secret' lies outside of the version's directory"),
        ("reference = '/etc/hostname'", "lies outside"),
        (r'reference = "\u0000"', "no file name"),
        ("[labels]\nmaturity_s = 9300000000", r"labels\.maturity_s"),
        ("[labels]\nmaturity_s = 99999999999999999999999", r"labels\.maturity_s"),
        ("[inputs.X]\nfeatures = ['" + "a" * 257 + "']", r"inputs.*features"),
        ('[inputs.X]\nfeatures = ["a\\u001b[2J"]', r"inputs.*features"),
        ('[outputs."a\\u0007"]', "outputs"),
        ("[outputs." + "a" * 257 + "]", "outputs"),
        ("a=" + "[" * 50_000, "m/1/bundle.toml: "),
        ("a" + ".a" * 20_000 + "=1", "a key of more than 64 parts"),
        ("a = " + "9" * 5_000, "m/1/bundle.toml: "),
        ("#" * 65_537, "more than 65536 bytes"),
    ],
)
def test_wrong_bundle_refuses_the_version(tmp_path: Path, text: str, said: str) -> None:
    """One line that names file and key; no path of the machine."""
    with pytest.raises(BundleInvalid, match=said) as wrong:
        read_bundle(put(tmp_path, b"x", bundle=text))
    assert str(wrong.value).startswith("m/1/bundle.toml: ")
    assert str(tmp_path) not in str(wrong.value)
    assert len(str(wrong.value)) < 400


def test_file_of_the_largest_size(tmp_path: Path) -> None:
    """64 KiB of settings are read."""
    assert read_bundle(put(tmp_path, b"x", bundle="#" * 65_536)).settings == BundleSettings()


@pytest.mark.parametrize(
    "name", ["bundle.toml", "reference.npz", "model.onnx", "notes/pipe", "../config.pbtxt"]
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    """A named pipe would be waited for, a device read without end: the version is refused, and says which it is."""
    directory = put(tmp_path, b"x")
    if name == "reference.npz":
        (directory / "bundle.toml").write_text("reference = 'reference.npz'")
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(BundleInvalid, match=path.name):
        read_bundle(directory)


def test_link_that_leads_nowhere_and_name_that_is_no_text(tmp_path: Path) -> None:
    """The first is no file and changes nothing; the second is one, and does."""
    directory = put(tmp_path, b"x")
    before = read_bundle(directory).tree_sha256
    (directory / ".#model.onnx").symlink_to("nowhere")
    assert read_bundle(directory).tree_sha256 == before
    Path(os.fsdecode(os.fsencode(directory) + b"/\xff")).write_bytes(b"")
    assert read_bundle(directory).tree_sha256 != before


def test_file_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are refused like any other mistake."""
    directory = put(tmp_path, b"x")
    (directory / "bundle.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BundleInvalid):
        read_bundle(directory)


def test_digests_follow_the_files(tmp_path: Path) -> None:
    """Another byte, name or file is another tree; the configuration's digest follows its two files only."""
    directory = put(tmp_path, b"x", bundle="")
    seen = [read_bundle(directory)]
    assert read_bundle(directory) == seen[0]

    def changed() -> tuple[bool, bool]:
        seen.append(read_bundle(directory))
        return (
            seen[-1].tree_sha256 != seen[-2].tree_sha256,
            seen[-1].config_sha256 != seen[-2].config_sha256,
        )

    (directory / "model.onnx").write_bytes(b"y")
    assert changed() == (True, False)
    (directory / "notes").mkdir()
    (directory / "notes" / "a").write_bytes(b"")
    assert changed() == (True, False)
    (directory / "notes" / "a").rename(directory / "notes" / "b")
    assert changed() == (True, False)
    (directory / "bundle.toml").write_text("owner = 'x'")
    assert changed() == (True, True)
    (directory.parent / "config.pbtxt").write_text("max_batch_size: 4")
    assert changed() == (False, True)


def test_digest_does_not_depend_on_the_place(tmp_path: Path) -> None:
    """The same files elsewhere have the same digests."""
    one = read_bundle(put(tmp_path / "a", b"x", bundle="owner = 'x'"))
    other = read_bundle(put(tmp_path / "b", b"x", name="n", version="9", bundle="owner = 'x'"))
    assert one == other
