"""Settings: where they come from, in which order, and how a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import config, settings
from gateway.errors import ConfigInvalid


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tidegate.toml of the working directory plays a part."""
    monkeypatch.chdir(tmp_path)


def test_nothing_is_needed() -> None:
    """Defaults are a working configuration on loopback, and no key has an origin."""
    loaded, origins = config.load(environ={})
    assert loaded == settings.Config()
    assert (loaded.data.host, loaded.admin.host, loaded.kafka) == ("127.0.0.1", "127.0.0.1", None)
    assert origins == {}


def test_later_wins(tmp_path: Path) -> None:
    """Defaults < file < environment < --set; the origin of each key is known."""
    file = tmp_path / "t.toml"
    file.write_text('workers = 2\n[audit]\nlevel = "none"\nkeep_h = 5\n[data]\nport = 1\n')
    environ = {"TIDEGATE_AUDIT__LEVEL": "fsync", "TIDEGATE_DATA__PORT": "2", "HOME": "/"}
    loaded, origins = config.load(file, ["data.port=3"], environ)
    assert (loaded.workers, loaded.audit.keep_h, loaded.audit.level, loaded.data.port) == (2, 5, "fsync", 3)
    assert origins == {
        "workers": str(file),
        "audit.keep_h": str(file),
        "audit.level": "TIDEGATE_AUDIT__LEVEL",
        "data.port": "--set",
    }


def test_file_of_the_directory_is_found(tmp_path: Path) -> None:
    """./tidegate.toml is read without being named."""
    (tmp_path / config.DEFAULT_FILE).write_text("workers = 3\n")
    assert config.load(environ={})[0].workers == 3


def test_lists_and_numbers_from_text() -> None:
    """Texts of the environment and of --set become what the key is."""
    loaded, _ = config.load(
        overrides=['session.providers=["A","B"]', "batch.linger_ms=1.5"],
        environ={},
    )
    assert loaded.session.providers == ("A", "B")
    assert loaded.batch.linger_ms == 1.5


def test_children_read_what_was_written() -> None:
    """Encoding for child processes loses nothing."""
    loaded, _ = config.load(overrides=["kafka.bootstrap_servers=127.0.0.1:9092", "workers=4"], environ={})
    assert config.decode(config.encode(loaded)) == loaded


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers=0", "--set: .*>= 1.*workers"),
        ("workers=65", "--set: .*<= 64.*workers"),
        ("data.port=65536", "--set: .*65535.*data.port"),
        ("audit.level=maybe", "--set: .*maybe.*audit.level"),
        ("audit.levle=fsync", "--set: .*unknown field `levle`"),
        ("nothing", "expected key=value"),
        ("workers.x=1", None),
        ("kafka.topic=t", "bootstrap_servers"),
        ("kafka.bootstrap_servers=kafka-1", r"bootstrap_servers holds 'kafka-1'; expected host:port"),
        ("kafka.bootstrap_servers=a:9092,'b:9092'", r"bootstrap_servers holds \"'b:9092'\"; expected"),
        ("kafka.bootstrap_servers=a:9092,,b:9092", r"bootstrap_servers holds ''; expected"),
        ("kafka.bootstrap_servers=a:70000", r"bootstrap_servers holds 'a:70000'; expected"),
        ("policy.flights.ramp=automatic", r"--set: .*automatic.*policy\.flights\.ramp"),
        ("policy.flights.rmap=auto", r"--set: .*unknown field `rmap` - at `policy\.flights\.rmap`"),
        ("policy.f.versions.v2.max_shift_sd.p=1", r"--set: .*regex.*versions"),
        ("policy.f.versions.2.max_shift=1", "--set: .*unknown field `max_shift`"),
        ("policy.f.max_shift_sd.p=0", r"--set: .*> 0.*policy\.f\.max_shift_sd\.p"),
        ('policy.f.max_shift_sd={"p":-1}', r"--set: .*> 0.*policy\.f\.max_shift_sd"),
        ("policy.a b.ramp=auto", "--set: .*regex"),
        ("policy.f.alpha=0.6", r"--set: .*<= 0\.5.*policy\.f\.alpha"),
        ("sidecar.clock=wall", r"--set: .*wall.*sidecar\.clock"),
        ("sidecar.source=kafka", r"no \[kafka\] section: set kafka\.bootstrap_servers, or sidecar\.source"),
        ("admin.host=0.0.0.0", "admin.host is '0.0.0.0': only loopback"),
    ],
)
def test_wrong_values_are_told(text: str, said: str | None) -> None:
    """One line that names origin and key, and what was expected."""
    with pytest.raises(ConfigInvalid, match=said) as wrong:
        config.load(overrides=[text], environ={})
    assert "\n" not in str(wrong.value)


def test_policy_of_a_model(tmp_path: Path) -> None:
    """A model without a policy has the default one; names with dots come from the file whole."""
    file = tmp_path / "t.toml"
    file.write_text('[policy."a.b"]\nramp = "auto"\nmax_shift_sd = { "out.1" = 0.3 }\n')
    loaded, origins = config.load(file, ["policy.c.lease_s=3"], {})
    assert loaded.policy_of("nobody") == settings.Policy()
    assert (loaded.policy_of("a.b").ramp, loaded.policy_of("a.b").max_shift_sd) == ("auto", {"out.1": 0.3})
    assert (loaded.policy_of("c").ramp, loaded.policy_of("c").lease_s) == ("manual", 3)
    assert origins["policy.a.b.max_shift_sd.out.1"] == str(file)
    assert config.decode(config.encode(loaded)) == loaded


def test_expected_shift_is_the_nearest_declared() -> None:
    """Of the version, else of the model, else the default."""
    made = settings.Policy(
        max_shift_sd={"p": 0.3, "q": 0.2}, versions={"2": settings.VersionPolicy(max_shift_sd={"p": 0.4})}
    )
    asked = (("2", "p"), ("2", "q"), ("1", "p"), ("1", "other"))
    assert [made.shift_sd(*pair) for pair in asked] == [0.4, 0.2, 0.3, settings.SHIFT_SD]


def test_sidecar_may_follow_the_topic() -> None:
    """With a [kafka] section, sidecar and mirror may read from it."""
    given = ["sidecar.source=kafka", "kafka.bootstrap_servers=127.0.0.1:9092"]
    assert config.load(overrides=given, environ={})[0].sidecar.source == "kafka"


def test_value_where_a_section_stands(tmp_path: Path) -> None:
    """A key below a value names both."""
    file = tmp_path / "t.toml"
    file.write_text("workers = 2\n")
    with pytest.raises(ConfigInvalid, match="workers is a value, not a section"):
        config.load(file, ["workers.count=1"], {})


def test_environment_names_the_variable() -> None:
    """A wrong variable is named as it is spelled in the environment."""
    with pytest.raises(ConfigInvalid, match=r"^TIDEGATE_BATCH__LANES: .*batch\.lanes"):
        config.load(environ={"TIDEGATE_BATCH__LANES": "none"})


@pytest.mark.parametrize("content", [b"workers = ", b"\xff\xfe"])
def test_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    """A broken file is one line."""
    (tmp_path / "t.toml").write_bytes(content)
    with pytest.raises(ConfigInvalid, match=r"t\.toml: not TOML"):
        config.load(tmp_path / "t.toml", environ={})


def test_missing_file(tmp_path: Path) -> None:
    """A named file must be there."""
    with pytest.raises(ConfigInvalid, match=r"none\.toml: No such file"):
        config.load(tmp_path / "none.toml", environ={})
