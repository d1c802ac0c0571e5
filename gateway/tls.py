"""TLS of a listener: certificate, key and authority of clients, read again when their files change.

control -> **tls** -> the admin listener. A handshake takes what was read last; connections that are there stay as they
are, so that nothing is dropped when a certificate is renewed. TLS 1.2 at least, no session is resumed: a certificate
that an authority no longer vouches for opens nothing at the next connection.
"""

from __future__ import annotations

import logging
import re
import ssl
from pathlib import Path
from typing import Any

from gateway.errors import ConfigInvalid

log = logging.getLogger("tidegate.tls")

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


class Certificates:
    """The context of a listener, and what it takes for the next handshake.

    Args:
        cert: PEM, the listener's certificate and those between it and its authority.
        key: PEM, its key.
        client_ca: PEM, who vouches for clients; None: no client is asked for a certificate.

    Threading: the loop thread. `reload` is three stats; reading files again takes about a millisecond.

    Raises:
        ConfigInvalid: a file cannot be read, or they do not fit; names the setting.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._files = [path for path in (cert, key, client_ca) if path is not None]
        self._seen = self._signatures()
        self._current = self._read()
        self.context = self._read()
        """For the server: each handshake goes on with what was read last."""
        self.context.sni_callback = self._take_current
        self.problem: str | None = None
        """Why what is on disk now is not taken up."""

    def reload(self) -> bool:
        """Take up files that changed; whether anything was. Never raises: see `problem`."""
        seen = self._signatures()
        if seen == self._seen:
            return False
        try:
            self._current = self._read()
        except ConfigInvalid as exc:
            # Not taken as seen: where we could not read, as without a descriptor left, the next look may.
            if str(exc) != self.problem:
                self.problem = str(exc)
                log.error("certificate_unusable", extra={"why": str(exc)})  # noqa: TRY400
            return False
        self._seen = seen
        self.problem = None
        log.info("certificate_reloaded")
        return True

    @property
    def public(self) -> bytes:
        """The listener's own certificate, for those on this host that shall know it by that.

        Nothing else of the file: whoever trusts what stands behind it trusts all that those authorities signed, and a
        key may stand there, too.

        Raises:
            OSError: it cannot be read.
        """
        found = _CERTIFICATE.search(self._cert.read_bytes())
        if found is None:
            msg = f"{self._cert.name} holds no certificate"
            raise OSError(msg)
        return found[0]

    def _take_current(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        # Called in each handshake, with a name or without.
        connection.context = self._current

    def _signatures(self) -> list[Any]:
        found: list[Any] = []
        for path in self._files:
            try:
                stat = path.stat()
            except OSError as exc:
                found.append(exc.errno)
            else:
                found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
        return found

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        _check_private(self._key)
        try:
            # A prompt would wait for ever: whoever has a password on the key takes it off.
            context.load_cert_chain(self._cert, self._key, password=lambda: b"")
        except (OSError, ValueError) as exc:
            msg = (
                f"admin.tls.cert and admin.tls.key: {_why(exc)}; expected a certificate and its key without"
                " password, PEM"
            )
            raise ConfigInvalid(msg) from exc
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ValueError) as exc:
                msg = f"admin.tls.client_ca: {_why(exc)}; expected certificates of authorities, PEM"
                raise ConfigInvalid(msg) from exc
            # Asked for, not needed: who has none brings a token.
            context.verify_mode = ssl.CERT_OPTIONAL
        return context


def pinned_to(cert: Path) -> ssl.SSLContext:
    """What the gateway's own processes speak to its listener with: they take the configured certificate and no other,
    whatever name they reach it by.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cert)
    return context


def _check_private(key: Path) -> None:
    try:
        mode = key.stat().st_mode & 0o777
    except OSError as exc:
        msg = f"admin.tls.key: {_why(exc)}"
        raise ConfigInvalid(msg) from exc
    if mode & 0o007:
        msg = f"admin.tls.key {key.name!r} may be read by others (mode {mode:04o}): chmod 600 it"
        raise ConfigInvalid(msg)


def _why(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLError):
        return exc.reason or "not PEM"
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
