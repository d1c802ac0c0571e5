"""A real Apache Kafka for tests and for `make kafka`: one KRaft node from its Maven artifacts, on loopback.

    python -m bench.kafka start [--port 9092] [--dir .kafka]      in the foreground, until Ctrl-C or SIGTERM
    python -m bench.kafka stop|status [--dir .kafka]              from elsewhere; status ends 1 when none runs

Needs Java 17 and, the first time, Maven. The jars (about 45 MB) are kept outside of the repository, in the directory
that KAFKA_JARS names, by default the user's cache.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KAFKA_VERSION = "4.1.1"
POM = """<project><modelVersion>4.0.0</modelVersion>
<groupId>tidegate</groupId><artifactId>kafka-jars</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>%s</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
"""
HEAP = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
START_TIMEOUT_S = 60.0
_TERMINATED = 128 + signal.SIGTERM
"""How a JVM ends that was told to."""
_given: set[int] = set()
"""Ports that this process has given."""


class KafkaAbsent(Exception):
    """There is no Kafka to be had here; the message says what is missing."""


def jars(version: str = KAFKA_VERSION) -> Path:
    """The directory of Kafka's jars; fetched once.

    Raises:
        KafkaAbsent: Java or Maven is missing, or Maven cannot fetch.
    """
    if shutil.which("java") is None:
        msg = "java is not installed (Kafka needs Java 17 or newer)"
        raise KafkaAbsent(msg)
    directory = Path.home() / ".cache" / "tidegate" / f"kafka-{version}"
    if version == KAFKA_VERSION:
        directory = Path(os.environ.get("KAFKA_JARS") or directory)
    if any(directory.glob("kafka_2.13-*.jar")):
        return directory
    if shutil.which("mvn") is None:
        msg = "mvn is not installed (it fetches Kafka's jars the first time)"
        raise KafkaAbsent(msg)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as work:
        pom, out = Path(work) / "pom.xml", Path(work) / "jars"
        pom.write_text(POM % version)
        command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={out}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["no output"]
            msg = f"Maven could not fetch Kafka {version}: {last[0][:200]}"
            raise KafkaAbsent(msg)
        if not directory.exists():
            out.rename(directory)
    return directory


def free_port() -> int:
    """A port that was free a moment ago; no two calls give the same one, so that listeners of a broker differ."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


def cluster_id() -> str:
    """A random one. Never with a dash in front: the tool that takes it would read an option."""
    while True:
        made = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not made.startswith("-"):
            return made


def running(directory: Path) -> int | None:
    """The pid of the broker that runs on a data directory, or None."""
    try:
        pid = int((directory / "kafka.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(directory / "server.properties") in command else None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a node is started with beyond the defaults.

    Attributes:
        doors: further listeners for clients, by name, with their security protocol: {"TLS": "SSL"}.
        advertised: what clients of a listener are told to connect to instead, host:port by its name: a proxy's.
        settings: lines of server.properties.
        users: passwords by name, for SCRAM with SHA-256 and SHA-512.
        seats: controllers' ports by node id, of all nodes; empty: this node is alone.
    """

    version: str = KAFKA_VERSION
    doors: Mapping[str, str] = field(default_factory=dict)
    advertised: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)
    node: int = 1
    seats: Mapping[int, int] = field(default_factory=dict)
    cluster: str = field(default_factory=cluster_id)


class Broker:
    """One KRaft node (broker and controller) with its own data directory.

    Args:
        directory: its data and log; made when missing.
        port: of the client listener; 0 takes a free one, kept over restarts.
    """

    def __init__(self, directory: Path, port: int = 0, setup: Setup | None = None) -> None:
        self._setup = setup or Setup()
        self._classpath = f"{jars(self._setup.version)}/*"
        self._directory = directory
        self.port = port or free_port()
        self._doors = {name: free_port() for name in self._setup.doors}
        self._seats = self._setup.seats or {self._setup.node: free_port()}
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.port}"

    def door(self, name: str) -> str:
        """host:port of one of the further listeners."""
        return f"localhost:{self._doors[name]}"

    def start(self) -> Broker:
        """Format when new, start, and wait until it answers.

        Raises:
            KafkaAbsent: the port or the directory is in use, or the directory cannot be formatted.
            TimeoutError: not up within a minute; its last lines are in the message.
        """
        other = running(self._directory)
        if other is not None:
            msg = f"a broker runs on this directory already (pid {other})"
            raise KafkaAbsent(msg)
        self._check_port()
        config = self._write_config()
        if not (self._directory / "data" / "meta.properties").exists():
            command = self._java("kafka.tools.StorageTool", "format", "-t", self._setup.cluster)
            command += ["-c", str(config)]
            for name, password in self._setup.users.items():
                for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                    command += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode:
                msg = f"Kafka cannot format its directory: {(done.stdout + done.stderr).strip()[-300:]}"
                raise KafkaAbsent(msg)
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(config)),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.spawned(self._process.pid)
        (self._directory / "kafka.pid").write_text(f"{self._process.pid}\n")
        self._await_ready()
        return self

    def spawned(self, pid: int) -> None:
        """Told of its process before it answers; nothing here."""

    def stop(self) -> None:
        """Controlled shutdown."""
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """SIGKILL: the log is recovered at the next start."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again on the same port and data."""
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int | None:
        """The broker's process."""
        return None if self._process is None else self._process.pid

    def wait(self) -> int:
        """Until the broker ends by itself."""
        return self._process.wait() if self._process is not None else 0

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        (self._directory / "kafka.pid").unlink(missing_ok=True)
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _java(self, main: str, *arguments: str) -> list[str]:
        return ["java", *HEAP, "-Djava.awt.headless=true", "-cp", self._classpath, main, *arguments]

    def _write_config(self) -> Path:
        own = {"PLAINTEXT": f"127.0.0.1:{self.port}", **{name: self.door(name) for name in self._doors}}
        listeners = ",".join(f"{name}://{where}" for name, where in own.items())
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **self._setup.doors}
        copies = str(min(3, len(self._seats)))
        lines = {
            "process.roles": "broker,controller",
            "node.id": str(self._setup.node),
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{self._seats[self._setup.node]}",
            "advertised.listeners": ",".join(
                f"{name}://{self._setup.advertised.get(name, where)}" for name, where in own.items()
            ),
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in protocols.items()),
            "controller.quorum.voters": ",".join(
                f"{node}@127.0.0.1:{port}" for node, port in self._seats.items()
            ),
            "log.dirs": str(self._directory / "data"),
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "500",
            # After a kill -9 the controller lets the node back only when its old session is over (9 s by default).
            "broker.session.timeout.ms": "1500",
            "broker.heartbeat.interval.ms": "300",
            "log.cleaner.dedupe.buffer.size": "4194304",
            "num.network.threads": "2",
            "num.io.threads": "2",
            "auto.create.topics.enable": "false",
            **self._setup.settings,
        }
        path = self._directory / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        return path

    def _check_port(self) -> None:
        """Somebody else's listener would look like a broker that answers."""
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", self.port))
            except OSError:
                msg = f"port {self.port} is in use: stop what listens there, or give another with --port"
                raise KafkaAbsent(msg) from None

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        log = self._directory / "server.log"
        last = log.read_text(errors="replace").splitlines()[-5:]
        self._end(signal.SIGKILL)
        msg = "Kafka did not start: " + " | ".join(last)
        raise TimeoutError(msg)


def _serve(directory: Path, port: int) -> int:
    """In the foreground until told to stop, by Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    broker: Broker | None = None
    try:
        broker = Broker(directory, port)
        broker.start()
        sys.stdout.write(
            f"Kafka {KAFKA_VERSION} answers on {broker.bootstrap}; Ctrl-C stops it\n"
            f"  tidegate serve --set kafka.bootstrap_servers={broker.bootstrap}\n"
        )
        sys.stdout.flush()
        status = broker.wait()
        return 0 if status == _TERMINATED else status
    except (KafkaAbsent, TimeoutError) as exc:
        sys.stderr.write(f"kafka: {exc}\n")
        return 2
    except KeyboardInterrupt:
        return 0
    finally:
        if broker is not None:
            broker.stop()


def _stop(directory: Path) -> int:
    """End the broker of a directory; 1 when none runs."""
    pid = running(directory)
    if pid is None:
        sys.stdout.write("no broker runs here\n")
        return 1
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while running(directory) == pid and time.monotonic() < deadline:
        time.sleep(0.1)
    if running(directory) == pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    sys.stdout.write("stopped\n")
    return 0


def main() -> int:
    """`make kafka`."""
    parser = argparse.ArgumentParser(prog="python -m bench.kafka", description=__doc__)
    parser.add_argument("command", choices=["start", "stop", "status"])
    parser.add_argument("--port", type=int, default=9092)
    parser.add_argument("--dir", type=Path, default=Path(".kafka"))
    given = parser.parse_args()
    directory = given.dir.resolve()
    if given.command == "start":
        return _serve(directory, given.port)
    if given.command == "stop":
        return _stop(directory)
    pid = running(directory)
    sys.stdout.write("no broker runs here\n" if pid is None else f"a broker runs here (pid {pid})\n")
    return 1 if pid is None else 0


if __name__ == "__main__":
    raise SystemExit(main())
