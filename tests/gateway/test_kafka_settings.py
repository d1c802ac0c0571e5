"""Settings of `[kafka]`: what must stand together, and that no secret is a setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import config
from gateway.audit.brokers import client_arguments
from gateway.errors import BrokerSettingsUnusable, ConfigInvalid
from gateway.kafka import Kafka, Sasl, Tls

AT = ["kafka.bootstrap_servers=b:9092"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tidegate.toml of the working directory plays a part."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["kafka.sasl.username=u"], "expected one of password_file and password_env, found neither"),
        (
            ["kafka.sasl.username=u", "kafka.sasl.password_env=P", "kafka.sasl.password_file=f"],
            "password_file and password_env, found both",
        ),
        (["kafka.sasl.password_env=P"], "missing required field `username`"),
        (["kafka.sasl.username=u", "kafka.sasl.password_env=TIDEGATE_P"], "are settings; give it another"),
        (["kafka.tls.cert_file=c"], "kafka.tls.cert_file is set and kafka.tls.key_file is not"),
        (["kafka.tls.key_file=c"], "kafka.tls.key_file is set and kafka.tls.cert_file is not"),
        (["kafka.sasl.username=u", "kafka.sasl.password=secret"], "unknown field `password`"),
        (["kafka.sasl.username=u", "kafka.sasl.mechanism=GSSAPI"], "kafka.sasl.mechanism"),
    ],
)
def test_what_does_not_stand_together_is_refused(given: list[str], told: str) -> None:
    """One line names the keys; a password that was given as a setting is not repeated."""
    with pytest.raises(ConfigInvalid) as caught:
        config.load(overrides=[*AT, *given], environ={})
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_empty_section_switches_tls_on(tmp_path: Path) -> None:
    """`[kafka.tls]` alone trusts the system's authorities."""
    file = tmp_path / "t.toml"
    file.write_text('[kafka]\nbootstrap_servers = "b:9092"\n[kafka.tls]\n')
    loaded, _ = config.load(file, environ={})
    assert loaded.kafka == Kafka(bootstrap_servers="b:9092", tls=Tls())
    assert config.decode(config.encode(loaded)) == loaded


def test_what_clients_are_started_with(tmp_path: Path) -> None:
    """Nothing asked: plaintext and nobody; a password from the environment or a file, without its line end."""
    assert client_arguments(Kafka(bootstrap_servers="b:1")) == {
        "bootstrap_servers": "b:1",
        "security_protocol": "PLAINTEXT",
    }
    by_env = Kafka(bootstrap_servers="b:1", sasl=Sasl(username="u", password_env="KAFKA_PASSWORD"))
    assert client_arguments(by_env, {"KAFKA_PASSWORD": "p"}) == {
        "bootstrap_servers": "b:1",
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
    }
    (tmp_path / "p").write_text("q \n")
    by_file = Kafka(
        bootstrap_servers="b:1", sasl=Sasl(username="u", password_file=str(tmp_path / "p")), tls=Tls()
    )
    found = client_arguments(by_file, {})
    assert (found["security_protocol"], found["sasl_plain_password"]) == ("SASL_SSL", "q ")
    assert found["ssl_context"].check_hostname


@pytest.mark.parametrize(
    ("kafka", "told"),
    [
        (
            Kafka(bootstrap_servers="b", sasl=Sasl(username="u", password_env="X")),
            "environment's X is empty or not there",
        ),
        (
            Kafka(bootstrap_servers="b", sasl=Sasl(username="u", password_file="no")),
            "kafka.sasl.password_file: no cannot be read: No such file",
        ),
        (
            Kafka(bootstrap_servers="b", tls=Tls(ca_file="no")),
            "kafka.tls.ca_file: no cannot be used: No such",
        ),
        (
            Kafka(bootstrap_servers="b", tls=Tls(cert_file="no", key_file="neither")),
            "kafka.tls.cert_file: no and kafka.tls.key_file: neither cannot be used",
        ),
    ],
)
def test_a_secret_that_cannot_be_read_is_named(kafka: Kafka, told: str) -> None:
    """The key and the file, in one line."""
    with pytest.raises(BrokerSettingsUnusable) as caught:
        client_arguments(kafka, {})
    assert told in str(caught.value)
