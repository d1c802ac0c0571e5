"""Brokers: what every client of ours is started with, and in words why none can be reached.

`[kafka]` -> **brokers** -> producer, topic, kafka_feed. Secrets and certificates are read here, each time a client is
made: who renews them restarts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from gateway.errors import BrokerSettingsUnusable
from gateway.kafka import Kafka, Sasl, Tls

DIAGNOSE_S = 5.0
"""A look for the reason takes at most."""
_DENIED = (SaslAuthenticationFailed, AuthenticationFailedError)


def client_arguments(kafka: Kafka, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Arguments of aiokafka's producer, consumer and admin client: where the brokers are, and how to be let in.

    Cost: reads up to four small files.

    Raises:
        BrokerSettingsUnusable: a password, certificate or key cannot be read; names the key, never what is in it.
    """
    found: dict[str, Any] = {"bootstrap_servers": kafka.bootstrap_servers}
    protocol = "PLAINTEXT"
    if kafka.tls is not None:
        protocol, found["ssl_context"] = "SSL", _tls(kafka.tls)
    if kafka.sasl is not None:
        protocol = "SASL_SSL" if kafka.tls is not None else "SASL_PLAINTEXT"
        found["sasl_mechanism"] = kafka.sasl.mechanism
        found["sasl_plain_username"] = kafka.sasl.username
        found["sasl_plain_password"] = _password(kafka.sasl, environ)
    return {**found, "security_protocol": protocol}


def _password(sasl: Sasl, environ: Mapping[str, str]) -> str:
    if sasl.password_env is not None:
        found = environ.get(sasl.password_env, "")
        where = f"kafka.sasl.password_env: the environment's {sasl.password_env}"
    else:
        where = f"kafka.sasl.password_file: {sasl.password_file}"
        try:
            found = Path(sasl.password_file or "").read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as exc:
            msg = f"{where} cannot be read: {getattr(exc, 'strerror', None) or 'not text'}"
            raise BrokerSettingsUnusable(msg) from None
    if not found:
        msg = f"{where} is empty or not there: expected the password"
        raise BrokerSettingsUnusable(msg)
    return found


def _tls(tls: Tls) -> ssl.SSLContext:
    context = _loaded("ca_file", tls.ca_file, lambda: ssl.create_default_context(cafile=tls.ca_file))
    if tls.cert_file is not None:
        # A key with a passphrase would ask for it on the terminal.
        where = f"{tls.cert_file} and kafka.tls.key_file: {tls.key_file}"
        _loaded("cert_file", where, lambda: context.load_cert_chain(tls.cert_file, tls.key_file, password=""))
    return context


def _loaded(key: str, where: str | None, load: Any) -> Any:
    try:
        return load()
    except (ssl.SSLError, OSError, ValueError) as exc:
        why = exc.reason if isinstance(exc, ssl.SSLError) else getattr(exc, "strerror", None)
        msg = f"kafka.tls.{key}: {where} cannot be used: {why or type(exc).__name__}"
        raise BrokerSettingsUnusable(msg) from None


async def diagnose(kafka: Kafka) -> str | None:
    """Why no client can be started, in one sentence; None when every broker answers one that asks.

    aiokafka says of each failure that it could not bootstrap. Asks each server of the settings, then those that they
    name, for 5 s at most.
    """
    arguments = client_arguments(kafka)
    arguments.pop("bootstrap_servers")
    arguments["request_timeout_ms"] = min(kafka.request_timeout_ms, int(DIAGNOSE_S * 1000))
    whys: list[str] = []
    named: dict[tuple[str, int], None] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DIAGNOSE_S):
            for host, port, _ in collect_hosts(kafka.bootstrap_servers, randomize=False):
                why, brokers = await _ask(kafka, host, port, arguments)
                if why is None:
                    named = dict.fromkeys(brokers)
                    whys = []
                    break
                whys.append(f"{host}:{port} {why}")
            for host, port in named:
                why, _ = await _ask(kafka, host, port, arguments)
                if why is not None:
                    whys.append(
                        f"{host}:{port}, as the brokers name themselves (advertised.listeners), {why}"
                    )
    return whys[0] if whys else None


async def _ask(
    kafka: Kafka, host: str, port: int, arguments: dict[str, Any]
) -> tuple[str | None, list[tuple[str, int]]]:
    """Why a server does not answer, and the brokers that it names."""
    connection: AIOKafkaConnection | None = None
    try:
        connection = await create_conn(host, port, **arguments)
        answer = await connection.send(MetadataRequest([]))
        return None, [(broker[1], broker[2]) for broker in answer.brokers]
    except (OSError, KafkaError, TimeoutError, ssl.SSLError) as exc:
        return _in_words(exc, kafka), []
    finally:
        if connection is not None:
            connection.close()


def _in_words(exc: BaseException, kafka: Kafka) -> str:
    sasl = kafka.sasl
    match exc:
        case ssl.SSLCertVerificationError():
            return f"has a certificate that is not accepted: {exc.verify_message} (kafka.tls.ca_file)"
        case ssl.SSLError():
            return f"ends the TLS handshake ({exc.reason or 'closed'}): is it a listener with TLS?"
        case UnsupportedSaslMechanismError() | IllegalSaslStateError() if sasl is not None:
            return f"does not take kafka.sasl.mechanism {sasl.mechanism} on this listener"
        case _ if isinstance(exc, _DENIED) and sasl is not None:
            return f"does not let user {sasl.username!r} in with {sasl.mechanism}: wrong name or password"
        case ConnectionRefusedError():
            return "refuses connections: nothing listens there"
        case TimeoutError():
            return "does not answer in time"
        case OSError() if exc.errno is not None and not isinstance(exc, ConnectionError):
            return f"cannot be connected to: {exc.strerror or exc}"
        case _:
            return _closed(kafka, shook_hands=isinstance(exc, KafkaError))


def _closed(kafka: Kafka, *, shook_hands: bool) -> str:
    wanted = []
    if kafka.tls is None:
        wanted.append("TLS ([kafka.tls])")
    elif not shook_hands:
        return "closes the connection: is it a listener with TLS?"
    if kafka.sasl is None:
        wanted.append("a user ([kafka.sasl])")
    if kafka.tls is not None and kafka.tls.cert_file is None:
        wanted.append("a client certificate (kafka.tls.cert_file)")
    return "closes the connection" + (f": does its listener want {' or '.join(wanted)}?" if wanted else "")
