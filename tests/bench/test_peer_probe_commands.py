"""What `bench peers features` and `loss` refuse at once, how they end, and that what was seen is not lost."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from bench.cli_peers import main
from bench.peers.peer import Unavailable
from bench.peers.probes import command, features, loss
from bench.peers.probes.gathering import Features, Losses
from bench.peers.probes.loss import Loss
from bench.peers.probes.table import Seen
from tests.bench.fake_peer import FakePeer

ROWS = ("--probe", "JSON", "--probe", "64 rows")
PAGE = "# Page\n<!-- {0}: begin -->\n\nold table\n\n<!-- {0}: end -->\nbelow\n"


class Product(FakePeer):
    """One that is not there, or of which a probe says something."""

    def __init__(self, name: str, said: dict[str, Seen | BaseException], *, is_absent: bool = False) -> None:
        super().__init__(name=name, title=name.title())
        self.said, self.is_absent = said, is_absent

    def prepare(self, say: object) -> str:
        if self.is_absent:
            raise Unavailable(self.name, "cannot be installed", "last words")
        return "1.0"


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """What products answer by name, without any being started; losses likewise. Handlers end with the test."""
    kinds = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(kind) for kind in kinds]
    found: dict[str, object] = {}

    def ask_one(peer: Product, probes: Sequence[features.Probe], _: object) -> Iterator[object]:
        for probe in probes:
            one = peer.said.get(probe.name, Seen("yes", "it did"))
            if isinstance(one, BaseException):
                raise one
            yield probe, one

    def measure_all(peers: Sequence[Product], _: object, **__: object) -> list[Loss]:
        (peer,) = peers
        one = found.get(peer.name, counted(peer.name))
        if isinstance(one, BaseException):
            raise one
        return [one]

    monkeypatch.setattr(features, "ask_one", ask_one)
    monkeypatch.setattr(loss, "measure_all", measure_all)
    monkeypatch.setattr(command.report, "commit", lambda: "abc1234")
    products(monkeypatch, Product("tidegate", {}), Product("litserve", {}))
    yield found
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)


def products(monkeypatch: pytest.MonkeyPatch, *made: Product) -> None:
    """These are all that there are."""
    monkeypatch.setattr(command, "PEERS", made)


def counted(name: str, **given: object) -> Loss:
    """A product that lost nothing, unless it is said."""
    whole = {"log": "a file", "sent": 10, "answered": 10, "arrived": 10}
    return Loss(**{"peer": name, "title": name.title(), **whole, **given})  # type: ignore[arg-type]


def ask(*arguments: str) -> Result:
    """A command of `bench peers`."""
    return CliRunner().invoke(main, list(arguments))


NO, UNSEEN = Seen("no", "it did not"), Seen("not seen", "there is no Kafka here")


@pytest.mark.parametrize(
    ("ours", "theirs", "status"),
    [
        ({}, {}, 0),
        ({}, {"JSON": NO}, 0),
        ({"JSON": NO}, {}, 1),
        ({"JSON": UNSEEN}, {}, 2),
        ({"JSON": UNSEEN, "64 rows": NO}, {}, 2),
        ({}, {"JSON": UNSEEN}, 0),
        (None, {}, 2),
        ({}, None, 2),
        ({"JSON": NO}, None, 2),
    ],
)
def test_features_end_as_the_page_says(
    ours: dict[str, Seen] | None, theirs: dict[str, Seen] | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 where we say no, 2 where a product, ours most of all, could not be asked; others' answers change nothing."""
    sides = {"tidegate": ours, "litserve": theirs}
    products(
        monkeypatch, *(Product(name, said or {}, is_absent=said is None) for name, said in sides.items())
    )
    done = ask("features", *ROWS)
    assert done.exit_code == status, done.output
    assert ("could not be asked" in done.stderr) is (status == 2)


@pytest.mark.parametrize(
    ("ours", "theirs", "status"),
    [
        ({}, {}, 0),
        ({"arrived": 9}, {}, 1),
        ({}, {"arrived": 0, "answered": 5}, 0),
        ({"answered": 0, "arrived": 0}, {}, 2),
        ({"answered": 9, "arrived": 9}, {}, 2),
        ({"answered": 9, "arrived": 8}, {}, 2),
        ({"answered": 0, "arrived": 0, "sent": 0}, {}, 2),
        ({"unavailable": "no wheel"}, {}, 2),
        ({}, {"unavailable": "no wheel"}, 2),
        ({}, {"log": "", "sent": 0, "answered": 0, "arrived": 0}, 0),
    ],
)
def test_losses_end_as_the_page_says(
    ours: dict[str, object], theirs: dict[str, object], status: int, seen: dict[str, object]
) -> None:
    """1 where ours lost any, 2 where one could not be measured or a request of ours failed; of others nothing else."""
    seen.update(tidegate=counted("tidegate", **ours), litserve=counted("litserve", **theirs))
    done = ask("loss")
    assert done.exit_code == status, done.output


@pytest.mark.parametrize("name", ["features", "loss"])
def test_a_table_says_what_made_it(name: str, tmp_path: Path) -> None:
    """Commit and command, without places on this machine, in the page and in JSON."""
    server, page, out = tmp_path / "server", tmp_path / "page.md", tmp_path / "out.json"
    server.write_text("")
    page.write_text(PAGE.format(name))
    done = ask(name, "--onnxruntime-server", str(server), "--write", str(page), "--out", str(out))
    assert done.exit_code == 0, done.output
    made = f"tidegate bench peers {name} --onnxruntime-server FILE"
    assert f"commit abc1234, `{made}`" in page.read_text()
    assert (page.read_text().startswith("# Page"), page.read_text().endswith("below\n")) == (True, True)
    kind = Features if name == "features" else Losses
    found = msgspec.json.decode(out.read_bytes(), type=kind)
    assert (found.commit, found.command, found.partial) == ("abc1234", made, "")


def test_a_command_of_a_part_names_it() -> None:
    """Rows with quotes, and whatever is not as usual."""
    done = ask("features", "--peer", "litserve", "--probe", "64 rows")
    assert "`tidegate bench peers features --peer litserve --probe '64 rows'`" in done.stdout
    done = ask("loss", "--requests", "100", "--outage-seconds", "2.5")
    assert "`tidegate bench peers loss --requests 100 --outage-seconds 2.5`" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("features", "--peer", "litserve"), "--peer asks for a part"),
        (("features", "--probe", "JSON"), "--probe asks for a part"),
        (("loss", "--peer", "litserve"), "--peer asks for a part"),
    ],
)
def test_a_part_does_not_replace_a_whole_table(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused in one line before anything starts; every product by name is no part."""
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(arguments[0]))
    with monkeypatch.context() as patch:
        patch.setattr(Product, "prepare", lambda *_: pytest.fail("it was started"))
        patch.setattr(loss, "measure_all", lambda *_, **__: pytest.fail("it was started"))
        done = ask(*arguments, "--write", str(page))
    assert (done.exit_code, said in done.stderr, len(done.stderr.splitlines())) == (2, True, 1), done.output
    assert page.read_text() == PAGE.format(arguments[0])
    every = ("--peer", "litserve", "--peer", "tidegate")
    assert ask(arguments[0], *every, "--write", str(page)).exit_code == 0
    assert "old table" not in page.read_text()


@pytest.mark.parametrize("name", ["features", "loss"])
def test_mistakes_are_said_before_anything_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page without a place, a file that cannot be written, a probe that is none: one line and status 2."""
    monkeypatch.setattr(Product, "prepare", lambda *_: pytest.fail("it was started"))
    monkeypatch.setattr(loss, "measure_all", lambda *_, **__: pytest.fail("it was started"))
    page = tmp_path / "page.md"
    page.write_text("# nothing\n")
    wrong = [
        (("--write", str(page)), "no place for the table"),
        (("--out", str(tmp_path / "absent" / "out.json")), "there is no directory"),
        (("--out", str(tmp_path)), "is a directory"),
    ]
    wrong += [(("--probe", "nothing"), "there is no probe 'nothing'")] if name == "features" else []
    for arguments, said in wrong:
        done = ask(name, *arguments)
        assert (done.exit_code, said in done.stderr, len(done.stderr.splitlines())) == (2, True, 1), (
            done.output
        )


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_an_outage_lasts_longer_than_nothing(seconds: str) -> None:
    """0, less, no number and endless are refused."""
    done = ask("loss", "--outage-seconds", seconds)
    assert (done.exit_code, "--outage-seconds" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("ended", "status"),
    [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device"), 2)],
    ids=["cut", "full"],
)
def test_cells_that_are_done_outlive_a_cut(
    ended: BaseException, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are printed and in --out, marked as a part; the page stays as it is, and the status says why."""
    products(monkeypatch, Product("tidegate", {}), Product("litserve", {"64 rows": ended}))
    monkeypatch.setattr(features, "PROBES", tuple(one for one in features.PROBES if one.name in ROWS))
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text(PAGE.format("features"))
    done = ask("features", "--out", str(out), "--write", str(page))
    assert done.exit_code == status, done.output
    assert len(done.stderr.strip().splitlines()[-1]) < 200
    assert page.read_text() == PAGE.format("features")
    found = msgspec.json.decode(out.read_bytes(), type=Features)
    assert found.partial.endswith("after 3 of 4 cells")
    assert f"**in part: {found.partial}**" in done.stdout
    assert found.answer("tidegate", "64 rows") == found.answer("litserve", "JSON") == Seen("yes", "it did")
    assert found.answer("litserve", "64 rows").answer == "not seen"


@pytest.mark.parametrize(
    ("ended", "status"),
    [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device"), 2)],
    ids=["cut", "full"],
)
def test_counts_that_are_done_outlive_a_cut(
    ended: BaseException, status: int, tmp_path: Path, seen: dict[str, object]
) -> None:
    """The same of losses; where nothing was counted yet a file stays what it was."""
    seen["litserve"] = ended
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text(PAGE.format("loss"))
    done = ask("loss", "--out", str(out), "--write", str(page))
    assert done.exit_code == status, done.output
    assert page.read_text() == PAGE.format("loss")
    found = msgspec.json.decode(out.read_bytes(), type=Losses)
    assert found.losses == (counted("tidegate"),)
    assert found.partial.endswith("after 1 of 2 products")
    assert f"**in part: {found.partial}**" in done.stdout
    seen["tidegate"] = ended
    out.write_text("old")
    assert ask("loss", "--out", str(out)).exit_code == status
    assert out.read_text() == "old"


def test_a_full_disk_at_the_end_leaves_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is printed before anything is written; page and file hold what they held."""
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text(PAGE.format("features"))
    out.write_text("old")

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as half:
            half.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(features, "PROBES", tuple(one for one in features.PROBES if one.name in ROWS))
    for option in (("--write", str(page)), ("--out", str(out))):
        done = ask("features", *option)
        assert (done.exit_code, "No space left" in done.stderr) == (2, True), done.output
        assert "| JSON | yes | yes |" in done.stdout
    assert (page.read_text(), out.read_text()) == (PAGE.format("features"), "old")
    assert {path.name for path in tmp_path.iterdir()} == {"page.md", "out.json"}


def test_results_of_before_are_still_read() -> None:
    """Without what made them: those fields are empty."""
    old = msgspec.json.encode({"columns": [], "rows": [], "made": "Probed on 2026-11-28"})
    assert msgspec.json.decode(old, type=Features).partial == ""
    assert msgspec.json.decode(b'{"losses": []}', type=Losses).command == ""
