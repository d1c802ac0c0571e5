"""Run: everything that `bench peers` does, from an empty machine to a page: environments, settings, rounds, files.

cli_peers -> **run**: each peer's environment is made, its settings are taken from where they are known (given, of a run
that goes on, committed) or found now, the comparison runs, and its directory holds the result as JSON, page and plot.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench import report, wrk
from bench.load import demand_processors
from bench.peers import calibration, catalog, environment, page
from bench.peers.adapters import PEERS
from bench.peers.calibration import Calibrated
from bench.peers.comparison import Comparison, Job, Passed
from bench.peers.figures import About, Chosen, Failed, Found, How, Pair, Result
from bench.peers.keeping import Code, Kept, held, write_whole
from bench.peers.peer import Peer, Say, Setting, Unavailable
from bench.peers.shortage import demand_room
from gateway.errors import ConfigInvalid

SETTINGS_FILE, JSON_FILE, PAGE_FILE, PLOT_FILE = "settings.json", "peers.json", "peers.md", "peers.svg"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run."""

    peers: tuple[str, ...] = ()
    """Without ours; none: all."""
    models: tuple[str, ...] = catalog.MODELS
    how: How = How()
    quick: bool = False
    rounds: int | None = None
    pinned: bool = False
    """Ours has the peer's workers, and no batching where theirs has none."""
    calibrate: bool = False
    """Find settings anew, whatever is known."""
    settings: str = ""
    """A file of settings to use instead of the committed ones."""

    @property
    def command(self) -> str:
        """What asks for the same figures, without places on this machine."""
        parts = ["tidegate bench peers", *(f"--peer {name}" for name in self.peers)]
        parts += [f"--model {name}" for name in self.models if self.models != catalog.MODELS]
        parts += [f"--seconds {self.how.seconds:g}", f"--rounds {self.rounds}" if self.rounds else ""]
        how, usual = self.how, How()
        parts.append(f"--server-cpu {how.server_cpu}" if how.server_cpu != usual.server_cpu else "")
        parts.append(
            f"--generator-cpu {how.generator_cpu}" if how.generator_cpu != usual.generator_cpu else ""
        )
        parts.append("--settings FILE" if self.settings else "")
        flags = (("quick", self.quick), ("calibrate", self.calibrate), ("ours-as-theirs", self.pinned))
        return " ".join(part for part in (*parts, *(f"--{name}" for name, on in flags if on)) if part)


def demand_whole(wanted: Wanted) -> None:
    """Raise ConfigInvalid where a run leaves out peers or models that the page has."""
    left_out = [
        *(f"--peer {name}" for name in wanted.peers if {peer.name for peer in PEERS[1:]} - {*wanted.peers}),
        *(f"--model {name}" for name in wanted.models if {*catalog.MODELS} - {*wanted.models}),
    ]
    if left_out:
        msg = (
            f"--write replaces all figures of a page, and {' '.join(left_out)} asks for some of them: run it without"
            f" --write; `bench peers page DIR/{JSON_FILE} --write PAGE` does it all the same"
        )
        raise ConfigInvalid(msg)


def ours() -> Peer:
    """Our side of every comparison."""
    return PEERS[0]


def chosen_peers(names: Sequence[str], *, with_ours: bool = False) -> list[Peer]:
    """The peers of these names in their fixed order; all of them where there are none.

    Args:
        with_ours: ours is one of them.

    Raises:
        ConfigInvalid: there is no such peer.
    """
    known = {peer.name: peer for peer in (PEERS if with_ours else PEERS[1:])}
    for name in names:
        if name not in known:
            msg = f"--peer {name}: there is no such peer; expected one of {', '.join(known)}"
            raise ConfigInvalid(msg)
    return [peer for name, peer in known.items() if not names or name in names]


def new_directory() -> Path:
    """A directory for a run, in the user's cache: one that nobody else has."""
    runs = environment.cache_dir() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        place = runs / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            place.mkdir()
            return place
    raise AssertionError


def prepare(peers: Sequence[Peer], say: Say) -> tuple[dict[str, str], list[Failed]]:
    """Make environments: versions by peer, and those that cannot be had, with why."""
    versions: dict[str, str] = {}
    failed: list[Failed] = []
    for peer in peers:
        try:
            versions[peer.name] = peer.prepare(say)
        except Unavailable as exc:
            say(f"{peer.name}: {exc.why}")
            failed.append(Failed(peer=peer.name, what="install", why=exc.why, last_lines=exc.last_lines))
    return versions, failed


def write_models(repository: Path, models: Sequence[str], say: Say) -> None:
    """The first version of each model."""
    for model in models:
        say(f"making {model}")
        catalog.write(repository, model)


def demand(wanted: Wanted) -> None:
    """Raise ConfigInvalid now rather than after an hour, when something that is needed is not here."""
    if wanted.settings:
        _demand_settings(Path(wanted.settings))
    how = wanted.how
    demand_processors(server=how.server_cpu, generator=how.generator_cpu)
    if how.server_cpu == how.generator_cpu:
        msg = f"--server-cpu and --generator-cpu are both {how.server_cpu}: servers and load need a processor each"
        raise ConfigInvalid(msg)
    wrk.demand(pinned=True)
    demand_room()


def _demand_settings(file: Path) -> None:
    if not file.is_file():
        msg = f"--settings {file}: there is no such file"
        raise ConfigInvalid(msg)
    classes, mine = calibration.read(file).classes, calibration.machine_class()
    names = ", ".join(map(repr, classes)) or "none"
    if mine not in classes:
        msg = f"--settings {file}: it has settings for {names}, and none for this class of machine, {mine!r}"
        raise ConfigInvalid(msg)


class Known:
    """Settings that are known, and those that are found now; all are kept in the run's directory."""

    def __init__(self, wanted: Wanted, directory: Path, repository: Path, say: Say) -> None:
        self._wanted, self._repository, self._say = wanted, repository, say
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / SETTINGS_FILE
        self._mine = self._of(self._file) or calibration.fresh()
        given = self._of(Path(wanted.settings)) if wanted.settings else None
        committed = None if wanted.calibrate or wanted.settings else self._of(calibration.COMMITTED)
        self._places = [place for place in (given, self._mine, committed) if place is not None]

    @property
    def found(self) -> Calibrated:
        """All of them."""
        return self._mine

    @staticmethod
    def _of(file: Path) -> Calibrated | None:
        return calibration.read(file).classes.get(calibration.machine_class())

    def get(self, peer: Peer, model: str) -> Chosen:
        """The setting of a peer and a model: given, of this run, committed, or found now.

        Raises:
            Unavailable: none works.
        """
        known = next(filter(None, (place.get(peer.name, model) for place in self._places)), None)
        if known is None:
            count, machine = len(peer.choices), calibration.machine_class()
            self._say(f"{peer.name}, {model}: no setting is known for {machine}: {count} are tried")
            known = calibration.calibrate(peer, model, self._repository, self._wanted.how, self._say)
        self._mine.peers.setdefault(peer.name, {})[model] = known
        calibration.write(self._file, self._mine)
        return known


def calibrate(wanted: Wanted, directory: Path, say: Say) -> tuple[Calibrated, list[Failed]]:
    """Find the settings of the peers that are named, ours by its name like any other; of all where none is named.

    They are kept in the directory's settings.json as soon as each is found.

    Raises:
        ConfigInvalid: what is wanted cannot be had at all.
    """
    peers = chosen_peers(wanted.peers, with_ours=True)
    demand(wanted)
    with held(directory), tempfile.TemporaryDirectory(prefix="tidegate-peers-") as scratch:
        write_models(Path(scratch), wanted.models, say)
        versions, failed = prepare(peers, say)
        known = Known(wanted, directory, Path(scratch), say)
        for peer in peers:
            for model in wanted.models if peer.name in versions else ():
                with _into(failed, peer, f"{model}: calibration"):
                    known.get(peer, model)
    return known.found, failed


def merged(before: Calibrated | None, found: Calibrated) -> Calibrated:
    """What was known of a class of machines, with what was found now over it.

    Its date and machine are those of now only where nothing older is left in it; else what was found now has its own
    in its reason.
    """
    if before is None or all(
        found.get(peer, model) for peer, models in before.peers.items() for model in models
    ):
        return found
    said = f"found on {found.at}" if found.at != before.at else ""
    if found.machine != before.machine:
        said = f"found on {found.at}, {found.machine.text()}"
    for peer, models in found.peers.items():
        for model, one in models.items():
            reason = f"{one.reason} ({said})" if said else one.reason
            before.peers.setdefault(peer, {})[model] = msgspec.structs.replace(one, reason=reason)
    return before


@contextlib.contextmanager
def _into(failed: list[Failed], peer: Peer, what: str):  # type: ignore[no-untyped-def]
    try:
        yield
    except Unavailable as exc:
        failed.append(Failed(peer=peer.name, what=what, why=exc.why, last_lines=exc.last_lines))


def run(wanted: Wanted, directory: Path, say: Say, passed: Passed = lambda _done, _of: None) -> Result:
    """Everything; the directory has the result as JSON, page and (with matplotlib) plot.

    Raises:
        ConfigInvalid: what is wanted cannot be had at all, or the code changed while it was measured.
        Unavailable: ours does not start.
    """
    # What is measured is what is there now: servers start from the tree for an hour and a half.
    commit, code = report.commit(), Code.now()
    peers = chosen_peers(wanted.peers)
    demand(wanted)
    with held(directory), tempfile.TemporaryDirectory(prefix="tidegate-peers-") as scratch:
        repository = Path(scratch)
        # Before anything is installed: what makes them may be missing.
        write_models(repository, wanted.models, say)
        versions, failed = prepare([ours(), *peers], say)
        there = [peer for peer in peers if peer.name in versions]
        known = Known(wanted, directory, repository, say)
        mine = {model: known.get(ours(), model) for model in wanted.models}
        pairs = []
        for peer in there:
            for model in wanted.models:
                with _into(failed, peer, f"{model}: calibration"):
                    pairs.append(_pair(peer.name, model, known.get(peer, model), mine[model], wanted))
        job = Job(
            ours=ours(), peers=there, models=wanted.models, versions=versions, how=wanted.how,
            quick=wanted.quick, rounds=wanted.rounds,
        )  # fmt: skip
        comparison = Comparison(
            job, Kept(directory, code), repository, machine=report.machine().text(), say=say, passed=passed
        )
        found = comparison.run(pairs)
        found.failed[:0] = failed
        result = _result(wanted, _about([ours(), *peers], versions), found, commit)
        return _keep(result, directory)


def _pair(peer: str, model: str, theirs: Chosen, mine: Chosen, wanted: Wanted) -> Pair:
    if wanted.pinned:
        setting = Setting(theirs.setting.workers, theirs.setting.batching)
        mine = Chosen(setting=setting, reason="pinned to theirs")
    return Pair(peer=peer, model=model, theirs=theirs, ours=mine)


def _about(peers: Sequence[Peer], versions: dict[str, str]) -> dict[str, About]:
    return {
        peer.name: About(
            title=peer.title, version=versions.get(peer.name, "(not installed)"), audit=peer.audit,
            forms=sorted(peer.forms), sources=list(peer.sources),
        )
        for peer in peers
    }  # fmt: skip


def _result(wanted: Wanted, peers: dict[str, About], found: Found, commit: str) -> Result:
    return Result(
        at=f"{datetime.now(UTC):%Y-%m-%d}",
        commit=commit,
        command=wanted.command,
        machine=report.machine(),
        how=wanted.how,
        quick=wanted.quick,
        pinned=wanted.pinned,
        peers=peers,
        found=found,
    )


def _keep(result: Result, directory: Path) -> Result:
    write_whole(directory / JSON_FILE, report.to_json(result).encode())
    picture = ""
    with contextlib.suppress(ConfigInvalid):
        page.draw(result, directory / PLOT_FILE)
        picture = PLOT_FILE
    write_whole(directory / PAGE_FILE, f"{page.markdown(result, picture)}\n".encode())
    return result


def read_result(file: Path) -> Result:
    """A result that was kept.

    Raises:
        ConfigInvalid: it is none.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as exc:
        msg = f"{file}: no result of `bench peers` ({exc})"
        raise ConfigInvalid(msg) from exc


def write_page(file: Path, result: Result) -> None:
    """Put a result into a page between its markers, and its plot beside the page.

    On a full disk both stay as they were.

    Raises:
        ConfigInvalid: the page has no markers, or matplotlib is not installed.
    """
    picture = file.with_name(f"{file.stem}{'-pinned' if result.pinned else ''}.svg")
    text = page.written(file.read_text(), result, picture.name)
    with tempfile.TemporaryDirectory(prefix="tidegate-peers-") as scratch:
        drawn = Path(scratch) / picture.name
        page.draw(result, drawn)
        write_whole(picture, drawn.read_bytes())
    write_whole(file, text.encode())
