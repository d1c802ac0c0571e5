"""A real broker with guarded doors, and one that is reached through a chaos proxy; one for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bench.kafka import Broker, KafkaAbsent, Setup
from tests.faults.chaos_proxy import ChaosProxy
from tests.kafka.authority import Authority, OpensslAbsent

PASSWORD = "spring-in-the-hills"
_LOGIN = "org.apache.kafka.common.security"


def _settings(authority: Authority) -> dict[str, str]:
    lines = {
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(authority.keystore("broker", "DNS:localhost")),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.ca),
        "listener.name.mutual.ssl.client.auth": "required",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "true",
    }
    for door in ("scram", "both"):
        at = f"listener.name.{door}"
        for mechanism in ("scram-sha-256", "scram-sha-512"):
            lines[f"{at}.{mechanism}.sasl.jaas.config"] = f"{_LOGIN}.scram.ScramLoginModule required;"
        lines[f"{at}.plain.sasl.jaas.config"] = (
            f'{_LOGIN}.plain.PlainLoginModule required user_gateway="{PASSWORD}";'
        )
    return lines


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signed the broker's certificate, which is for the name localhost only."""
    try:
        return Authority(tmp_path_factory.mktemp("authority"))
    except OpensslAbsent as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"required in CI: {exc}")
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def chaos() -> Iterator[ChaosProxy]:
    """The proxy before the guarded broker's door PROXIED."""
    proxy = ChaosProxy()
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, chaos: ChaosProxy
) -> Iterator[Broker]:
    """A broker with doors for users, for TLS, for both, for client certificates, and through a proxy."""
    setup = Setup(
        doors={
            "SCRAM": "SASL_PLAINTEXT",
            "TLS": "SSL",
            "BOTH": "SASL_SSL",
            "MUTUAL": "SSL",
            "PROXIED": "PLAINTEXT",
        },
        advertised={"PROXIED": chaos.address},
        users={"gateway": PASSWORD},
        settings=_settings(authority),
    )
    try:
        broker = Broker(tmp_path_factory.mktemp("guarded"), setup=setup).start()
    except KafkaAbsent as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"required in CI: {exc}")
        pytest.skip(f"kafka: {exc}")
    chaos.target = broker.door("PROXIED")
    yield broker
    broker.kill9()
