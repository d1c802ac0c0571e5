"""A certificate authority of a test's own, by the openssl command: brokers' and clients' certificates as PEM files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


class OpensslAbsent(Exception):
    """There is no openssl command here."""


class Authority:
    """Signs certificates; `ca` is what trusts them."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        if shutil.which("openssl") is None:
            msg = "openssl is not installed (it makes certificates for tests)"
            raise OpensslAbsent(msg)
        self._directory = directory / name
        self._directory.mkdir(parents=True)
        self.ca = self._directory / "ca.pem"
        self._key = self._directory / "ca.key"
        self._openssl(
            "req", "-x509", "-nodes", *_NEW_KEY, "-keyout", str(self._key), "-out", str(self.ca),
            "-days", "2", "-subj", f"/CN={name}",
        )  # fmt: skip

    def sign(self, name: str, *alternatives: str) -> tuple[Path, Path]:
        """A certificate and its key, of a name and subject alternatives (`DNS:localhost`)."""
        certificate, key, request = (self._directory / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        self._openssl(
            "req", "-new", "-nodes", *_NEW_KEY, "-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}",
        )  # fmt: skip
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(alternatives or ('DNS:' + name,))}\n")
        self._openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self._key), "-CAcreateserial",
            "-out", str(certificate), "-days", "2", "-extfile", str(extensions),
        )  # fmt: skip
        return certificate, key

    def keystore(self, name: str, *alternatives: str) -> Path:
        """Key and certificate in one file, as Kafka reads them."""
        certificate, key = self.sign(name, *alternatives)
        store = self._directory / f"{name}.store.pem"
        store.write_text(key.read_text() + certificate.read_text())
        return store

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
