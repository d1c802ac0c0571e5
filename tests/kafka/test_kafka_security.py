"""Users, passwords and certificates against a real broker: who is let in, and what is said to who is not."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from gateway.audit.brokers import client_arguments, diagnose
from gateway.audit.forwarder import Forwarder
from gateway.audit.kafka_feed import KafkaFeed
from gateway.kafka import Kafka, Sasl, Tls
from tests.kafka.authority import Authority
from tests.kafka.guarded import PASSWORD
from tests.kafka.lived import Lived, check_contiguous, labels, read_topic, run_with, until


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    """As a secret is mounted: with a line end."""
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return path


@pytest.fixture
def lived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A log with two events before one of the broker's doors; looks again at once."""
    monkeypatch.setattr("gateway.audit.forwarder.BACKOFF_S", (0.05, 0.1))
    made: list[Lived] = []

    def make(where: str, **settings: Any) -> Lived:
        one = Lived(tmp_path / f"state{len(made)}", where, partitions=1, request_timeout_ms=3000, **settings)
        made.append(one)
        one.append(1, 2)
        return one

    yield make
    for one in made:
        one.close()


def _user(password_file: Path, mechanism: str = "SCRAM-SHA-512") -> Sasl:
    return Sasl(username="gateway", password_file=str(password_file), mechanism=mechanism)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("door", "mechanism"),
    [
        ("SCRAM", "SCRAM-SHA-256"),
        ("SCRAM", "PLAIN"),
        ("BOTH", "SCRAM-SHA-512"),
        ("TLS", None),
        ("MUTUAL", None),
    ],
)
def test_who_has_a_key_is_let_in(lived, guarded, authority, password_file, door, mechanism):
    """Each way of being somebody, of the producer, of the topic's maker and of a reader alike."""
    settings: dict[str, Any] = {}
    if mechanism is not None:
        settings["sasl"] = _user(password_file, mechanism)
    if door != "SCRAM":
        pair = authority.sign("gateway") if door == "MUTUAL" else (None, None)
        cert, key = (None if path is None else str(path) for path in pair)
        settings["tls"] = Tls(ca_file=str(authority.ca), cert_file=cert, key_file=key)
    one = lived(guarded.door(door), **settings)
    assert one.forward().retries == 0
    messages = read_topic(guarded.bootstrap, one.kafka.topic)
    assert labels(check_contiguous(messages, msgspec.msgpack.decode)) == [1, 2]
    if door == "BOTH":
        feed = KafkaFeed(one.kafka.bootstrap_servers, one.kafka.topic, arguments=client_arguments(one.kafka))
        try:
            assert len(feed.read(100, 5000).events) >= 2
        finally:
            feed.close()


def _mended(one: Lived, forwarder: Forwarder, caplog: Any, mend: Any) -> tuple[str, list[str]]:
    """What the status says while nothing is sent, and the lines of the log; then it is mended, and all is sent."""
    said: list[str] = []

    async def drive() -> None:
        await until(lambda: forwarder.retries >= 3)
        said.append(json.loads((one.directory / "status.json").read_bytes())["why"])
        one.append(3)
        mend()
        await until(lambda: one.behind(forwarder) == 0)

    with caplog.at_level(logging.INFO, logger="tidegate.forwarder"):
        run_with(forwarder, drive)
    status = json.loads((one.directory / "status.json").read_bytes())
    assert (status["why"], status["stalled_ms"]) == (None, 0)
    names = [record.message for record in caplog.records if record.name == "tidegate.forwarder"]
    assert names[-1] == "kafka_reached"
    return said[0], names[:-1]


def test_a_wrong_password_is_told_once_and_can_be_mended(lived, guarded, password_file, caplog):
    """Status and log name the user and never the password; a new password in the file is enough."""
    password_file.write_text("autumn")
    one = lived(guarded.door("SCRAM"), sasl=_user(password_file))
    why, lines = _mended(one, one.forwarder(), caplog, lambda: password_file.write_text(PASSWORD))
    assert why == (
        f"{guarded.door('SCRAM')} does not let user 'gateway' in with SCRAM-SHA-512: wrong name or password"
    )
    assert lines == ["kafka_not_reachable"]
    assert "autumn" not in caplog.text
    assert labels(
        check_contiguous(read_topic(guarded.bootstrap, one.kafka.topic), msgspec.msgpack.decode)
    ) == [1, 2, 3]


def test_a_password_that_is_not_there_is_told(lived, guarded, tmp_path, caplog):
    """A secret that was not mounted yet: the file is named, and sending begins when it is there."""
    missing = tmp_path / "not-yet"
    one = lived(guarded.door("SCRAM"), sasl=_user(missing))
    why, lines = _mended(one, one.forwarder(), caplog, lambda: missing.write_text(PASSWORD))
    assert why == f"kafka.sasl.password_file: {missing} cannot be read: No such file or directory"
    assert lines == ["broker_settings_unusable"]


def test_a_wrong_authority_is_told_and_can_be_mended(lived, guarded, authority, tmp_path, caplog):
    """A broker whose certificate somebody else signed gets nothing; a new file is enough."""
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(Authority(tmp_path, "stranger").ca.read_bytes())
    one = lived(guarded.door("TLS"), tls=Tls(ca_file=str(trusted)))
    why, lines = _mended(one, one.forwarder(), caplog, lambda: trusted.write_bytes(authority.ca.read_bytes()))
    assert why.startswith(f"{guarded.door('TLS')} has a certificate that is not accepted: ")
    assert why.endswith("(kafka.tls.ca_file)")
    assert lines == ["kafka_not_reachable"]


def _why(kafka: Kafka) -> str:
    found = asyncio.run(diagnose(kafka))
    assert found is not None
    return found


def test_what_does_not_fit_a_door_is_told(guarded, authority, password_file):
    """Plaintext at TLS, TLS at plaintext, no user, no certificate, another name, another mechanism: one sentence."""

    def why(where: str, **settings: Any) -> str:
        return _why(Kafka(bootstrap_servers=where, request_timeout_ms=3000, **settings)).removeprefix(
            f"{where} "
        )

    tls = Tls(ca_file=str(authority.ca))
    by_address = guarded.door("TLS").replace("localhost", "127.0.0.1")
    assert why(guarded.door("TLS")) == (
        "closes the connection: does its listener want TLS ([kafka.tls]) or a user ([kafka.sasl])?"
    )
    assert why(guarded.bootstrap, tls=tls) == "closes the connection: is it a listener with TLS?"
    assert why(guarded.door("SCRAM")) == why(guarded.door("TLS"))
    assert "a client certificate (kafka.tls.cert_file)" in why(guarded.door("MUTUAL"), tls=tls)
    assert "IP address mismatch" in why(by_address, tls=tls)
    assert why(guarded.bootstrap, sasl=_user(password_file)) == (
        "does not take kafka.sasl.mechanism SCRAM-SHA-512 on this listener"
    )
    assert why("localhost:1") == "refuses connections: nothing listens there"
    assert "cannot be connected to" in why("name.invalid:9092")


def test_rights_that_are_taken_away_stop_sending_until_they_are_back(lived, guarded, password_file, caplog):
    """An ACL that lets only others write: why is told, records wait, and go when it is gone."""
    one = lived(guarded.door("SCRAM"), sasl=_user(password_file))
    one.forward()
    admin = AdminClient({"bootstrap.servers": guarded.bootstrap})
    topic = (ResourceType.TOPIC, one.kafka.topic, ResourcePatternType.LITERAL)
    rule = AclBinding(*topic, "User:somebody", "*", AclOperation.ALL, AclPermissionType.ALLOW)
    next(iter(admin.create_acls([rule]).values())).result(10)

    def mend() -> None:
        every = AclBindingFilter(*topic, None, None, AclOperation.ANY, AclPermissionType.ANY)
        next(iter(admin.delete_acls([every]).values())).result(10)

    one.append(4)
    why, _ = _mended(one, one.forwarder(), caplog, mend)
    assert "TopicAuthorizationFailed" in why
    messages = read_topic(guarded.bootstrap, one.kafka.topic)
    assert sorted(labels(check_contiguous(messages, msgspec.msgpack.decode))) == [1, 2, 3, 4]
