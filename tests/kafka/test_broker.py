"""The broker that tests and `make kafka` run."""

from __future__ import annotations

import os
import socket
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import kafka
from bench.kafka import Broker, KafkaAbsent, cluster_id, running


def test_a_cluster_id_is_no_option(monkeypatch: pytest.MonkeyPatch):
    """A random id that begins with a dash is drawn again."""
    drawn = iter([b"\xf8" + bytes(15), b"\0" * 16])
    monkeypatch.setattr(kafka, "urlsafe_b64encode", lambda _: kafka_base64(next(drawn)))
    assert cluster_id() == "A" * 22


def kafka_base64(raw: bytes) -> bytes:
    """As the module's own."""
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(raw)


def test_only_a_broker_of_the_directory_counts(tmp_path: Path):
    """A pid file that names another process, or none, is no broker: nobody else's process is stopped."""
    assert running(tmp_path) is None
    (tmp_path / "kafka.pid").write_text(str(os.getpid()))
    assert running(tmp_path) is None


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch):
    """What the kernel says is free it may say again a moment later: the listeners of a broker differ all the same."""
    said = iter([4001, 4001, 4001, 4002])
    sock = SimpleNamespace(bind=lambda _: None, getsockname=lambda: ("127.0.0.1", next(said)))
    monkeypatch.setattr(kafka, "socket", SimpleNamespace(socket=lambda: nullcontext(sock)))
    monkeypatch.setattr(kafka, "_given", set())
    assert [kafka.free_port() for _ in range(2)] == [4001, 4002]


def test_a_port_in_use_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another listener is not taken for the broker."""
    monkeypatch.setattr(kafka, "jars", lambda _: tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(KafkaAbsent, match=f"port {port} is in use"):
            Broker(tmp_path / "kafka", port).start()
