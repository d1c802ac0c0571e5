"""`[kafka]`: where the forwarder sends, who it is there, and how the connection is protected. Part of `gateway.config`.

A password stands in a file or in the environment and is read when a connection is made (gateway/audit/brokers.py): it
is no setting, so that no print of settings, no context of a process and no list of processes can hold it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.errors import ConfigInvalid

_SETTINGS_PREFIX = "TIDEGATE_"
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


class Sasl(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who the gateway is to the brokers; absent: nobody. The password comes from a file or the environment."""

    username: Annotated[str, Meta(min_length=1, description="as the brokers know it")]
    mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        Meta(description="PLAIN shows the password to whoever can listen, unless TLS is on"),
    ] = "SCRAM-SHA-512"
    password_file: Annotated[
        str | None, Meta(description="a file with the password; read again at every connection")
    ] = None
    password_env: Annotated[
        str | None, Meta(description="a variable of the environment with the password, instead of a file")
    ] = None


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS to the brokers, on where this section stands, if empty. Certificates and host names are always checked."""

    ca_file: Annotated[str | None, Meta(description="PEM of who signs the brokers; absent: the system's")] = (
        None
    )
    cert_file: Annotated[str | None, Meta(description="PEM of this gateway's certificate and chain")] = None
    key_file: Annotated[str | None, Meta(description="PEM of its key, without a passphrase")] = None


class Kafka(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the forwarder sends; absent: no forwarder."""

    bootstrap_servers: Annotated[str, Meta(min_length=1, description="host:port, comma-separated")]
    topic: Annotated[str, Meta(min_length=1, description="one topic for all events")] = "tidegate.events.v1"
    topic_check: Annotated[
        Literal["refuse", "warn"],
        Meta(description="when the topic's settings lose or change records: send nothing, or only say so"),
    ] = "refuse"
    partitions: Annotated[int, Meta(ge=1, description="when the topic is made here")] = 6
    replication_factor: Annotated[int, Meta(ge=1, description="when the topic is made here")] = 1
    encoding: Annotated[Literal["msgpack", "json"], Meta(description="of record values")] = "msgpack"
    batch_bytes: Annotated[int, Meta(ge=16_384, le=8_388_608, description="a produce batch")] = 524_288
    request_timeout_ms: Annotated[int, Meta(ge=500, description="a produce request")] = 10_000
    sasl: Sasl | None = None
    tls: Tls | None = None


def check(kafka: Kafka | None) -> None:
    """What one key of the section says of another.

    Raises:
        ConfigInvalid: in one line, naming the keys.
    """
    if kafka is None:
        return
    for server in kafka.bootstrap_servers.split(","):
        found = _SERVER.fullmatch(server.strip())
        if found is None or not 0 < int(found[2]) < 1 << 16:
            msg = (
                f"kafka.bootstrap_servers holds {server.strip()!r}; expected host:port, comma-separated, as in"
                " kafka-1:9092,kafka-2:9092 or [::1]:9092"
            )
            raise ConfigInvalid(msg)
    sasl, tls = kafka.sasl, kafka.tls
    if sasl is not None:
        if (sasl.password_file is None) == (sasl.password_env is None):
            given = "both" if sasl.password_file is not None else "neither"
            msg = f"kafka.sasl: expected one of password_file and password_env, found {given}"
            raise ConfigInvalid(msg)
        if (sasl.password_env or "").startswith(_SETTINGS_PREFIX):
            msg = (
                f"kafka.sasl.password_env is {sasl.password_env!r}: variables that begin with {_SETTINGS_PREFIX}"
                " are settings; give it another name, for example KAFKA_PASSWORD"
            )
            raise ConfigInvalid(msg)
    if tls is not None and (tls.cert_file is None) != (tls.key_file is None):
        has, lacks = ("cert_file", "key_file") if tls.key_file is None else ("key_file", "cert_file")
        msg = f"kafka.tls.{has} is set and kafka.tls.{lacks} is not: a client certificate needs both"
        raise ConfigInvalid(msg)
