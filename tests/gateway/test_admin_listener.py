"""The admin listener on a socket: limits of what comes, TLS that is renewed under it, client certificates."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api import admin_door, crowd, handshakes
from gateway.api.admin_door import AdminDoor, names_of
from gateway.api.admin_server import PUBLIC, AdminServer
from gateway.api.crowd import Limits
from gateway.api.guarding import CERTIFICATE, Guard
from gateway.api.handshakes import HANDSHAKES_MAX
from gateway.api.repository import ControlClient
from gateway.cli.client import Access, admin_client
from gateway.config import load
from gateway.control.access import Rule
from gateway.control.listener import certificates_of
from gateway.control.token_store import Asked, TokenStore
from gateway.control.token_table import TABLE, write_private
from gateway.control.tokens import Tokens
from gateway.errors import ConfigInvalid
from gateway.tls import Certificates, pinned_to
from shadow import act
from tests.kafka.authority import Authority

ASK = b"GET /who HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


class Listener:
    """An admin server on a thread: it says who asks. `tick` runs all the time."""

    def __init__(self, state_dir: Path, certificates: Certificates | None = None) -> None:
        self.tokens = Tokens(state_dir)
        guard = Guard(self.tokens, on_loopback=True, every=True)
        rule = Rule("read")
        routes = [
            Route("/who", guard("GET", "/who", Rule("open"), self._who)),
            Route("/named", guard("GET", "/named", rule, self._who)),
            Route("/body", self._body, methods=["POST"]),
        ]
        self.server = AdminServer(Starlette(routes=routes), certificates, state_dir)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    async def _run(self) -> None:
        serving = asyncio.create_task(self.server.serve(sockets=[self._socket]))
        while not serving.done():
            self.tokens.reload()
            self.server.tick()
            await asyncio.sleep(0.02)

    async def _who(self, request: Request) -> Response:
        principal = getattr(request.state, "principal", None)
        names = request.scope.get("extensions", {}).get(CERTIFICATE, {}).get("names", ())
        return Response(f"{principal.name if principal else '-'} {','.join(names)}")

    async def _body(self, request: Request) -> Response:
        return Response(str(len(await request.body())))

    def connect(self, context: ssl.SSLContext | None = None) -> socket.socket:
        """A connection, its handshake done."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return plain if context is None else context.wrap_socket(plain, server_hostname="localhost")

    def close(self) -> None:
        """End it."""
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def listening(state_dir: Path, certificates: Certificates | None = None) -> Iterator[Listener]:
    """A listener while the body runs."""
    listener = Listener(state_dir, certificates)
    try:
        yield listener
    finally:
        listener.close()


def answer(connection: socket.socket, content: bytes = ASK) -> tuple[int, bytes]:
    """Status and whatever follows of the reply to one request; status 0 where there was none."""
    with contextlib.suppress(OSError):
        connection.sendall(content)
    told = b""
    with contextlib.suppress(OSError):
        while b"\r\n\r\n" not in told:
            piece = connection.recv(65_536)
            if not piece:
                break
            told += piece
        head, _, body = told.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length: "):
                while len(body) < int(line[16:]) and (piece := connection.recv(65_536)):
                    body += piece
        told = head + b"\r\n\r\n" + body
    return (int(told.split(b" ", 2)[1]) if told.startswith(b"HTTP/") else 0), told


def exchanged(listener: Listener, content: bytes, context: ssl.SSLContext | None = None) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    with listener.connect(context) as connection:
        return answer(connection, content)


HEAD = b"GET /who HTTP/1.1\r\nhost: 127.0.0.1\r\n"
POST = b"POST /body HTTP/1.1\r\nhost: 127.0.0.1\r\n"
BOUNDED = {
    "long head": (HEAD + b"x: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "many fields": (HEAD + b"x: a\r\n" * 101 + b"\r\n", 431),
    "long target": (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", 414),
    "large body": (POST + b"content-length: 1048577\r\n\r\n", 413),
    "body beyond all": (POST + b"content-length: 99999999999999\r\n\r\n", 413),
    "two hosts": (HEAD + b"host: 127.0.0.1\r\n\r\n", 400),
    "two framings": (POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello", 400),
    "small chunks": (
        POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 40_000 + b"0\r\n\r\n",
        400,
    ),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_what_comes_is_bounded(tmp_path: Path, name: str) -> None:
    """Heads, bodies and framing: refused as at the data listener, and others go on."""
    content, status = BOUNDED[name]
    with listening(tmp_path) as listener, listener.connect() as other:
        assert exchanged(listener, content)[0] == status
        assert answer(other)[0] == 200


def test_who_is_slow_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head or a body that does not come: 408; a connection that asks nothing goes after its time."""
    limits = Limits(header_s=0.2, body_s=0.2, idle_s=0.3, body_max_bytes=1000)
    monkeypatch.setattr(AdminDoor.bind.__func__, "__kwdefaults__", {"limits": limits, "connections_max": 8})  # type: ignore[attr-defined]
    with listening(tmp_path) as listener:
        assert exchanged(listener, HEAD)[0] == 408
        assert exchanged(listener, POST + b"content-length: 9\r\n\r\nab")[0] == 408
        with listener.connect() as idle:
            assert answer(idle)[0] == 200
            assert idle.recv(100) == b""


def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is told so, when all others are in use; control goes on."""
    monkeypatch.setattr(
        AdminDoor.bind.__func__,  # type: ignore[attr-defined]
        "__kwdefaults__",
        {"limits": admin_door.LIMITS, "connections_max": 2},
    )
    monkeypatch.setattr(crowd, "IDLE_MIN_S", 600.0)
    with listening(tmp_path) as listener, listener.connect() as one, listener.connect() as two:
        assert [answer(one)[0], answer(two)[0]] == [200, 200]
        for connection in (one, two):
            connection.sendall(HEAD)
        status, told = exchanged(listener, ASK)
        assert (status, b"too many connections" in told) == (503, True)
        assert answer(one, b"\r\n")[0] == 200


@pytest.mark.parametrize(
    "content", [HEAD, b"POST /named HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\n"]
)
def test_who_only_holds_a_connection_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """A head without an end, a body after its refusal: neither needs a token, and neither keeps operators out."""
    monkeypatch.setattr(
        AdminDoor.bind.__func__,  # type: ignore[attr-defined]
        "__kwdefaults__",
        {"limits": admin_door.LIMITS, "connections_max": 2},
    )
    monkeypatch.setattr(crowd, "IDLE_MIN_S", 0.0)
    monkeypatch.setattr(crowd, "LOOK_AGAIN_S", 0.0)
    with listening(tmp_path) as listener, listener.connect() as one, listener.connect() as two:
        for connection in (one, two):
            assert answer(connection)[0] == 200
            connection.sendall(content)
            if content != HEAD:
                assert answer(connection, b"")[0] >= 400
        for _ in range(3):
            assert exchanged(listener, ASK)[0] == 200


def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    """A refusal stands in its turn and is the last."""
    with listening(tmp_path) as listener, listener.connect() as connection:
        connection.sendall(ASK + POST + b"content-length: 3\r\n\r\nabc" + HEAD + b"host: b\r\n\r\n" + ASK)
        told = b""
        while piece := connection.recv(65_536):
            told += piece
    assert [int(part[:3]) for part in told.split(b"HTTP/1.1 ")[1:]] == [200, 200, 400]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who vouches for the listener and for clients."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, of the same name."""
    return Authority(tmp_path_factory.mktemp("stranger"))


class Files:
    """The listener's files as the configuration names them; put anew to renew them."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        directory.mkdir()
        self.cert, self.key, self.client_ca = (
            directory / "cert.pem",
            directory / "key.pem",
            directory / "ca.pem",
        )
        self.put(authority, "first")
        write_private(self.client_ca, authority.ca.read_bytes())

    def put(self, authority: Authority, name: str) -> None:
        """A certificate of this name for localhost."""
        cert, key = authority.sign(name, "DNS:localhost", f"DNS:{name}")
        write_private(self.key, key.read_bytes())
        write_private(self.cert, cert.read_bytes())

    def certificates(self, *, clients: bool = False) -> Certificates:
        """As control reads them."""
        return Certificates(self.cert, self.key, self.client_ca if clients else None)


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    """A certificate for localhost, of the authority."""
    return Files(tmp_path / "tls", authority)


def client(authority: Authority, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """A client that trusts the authority, with a certificate of its own or without."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    if own is not None:
        context.load_cert_chain(*own)
    return context


def shown(connection: Any) -> tuple[str, ...]:
    """The names of the certificate that the listener showed."""
    return names_of(connection.getpeercert())


def test_certificate_is_renewed_and_nothing_is_dropped(
    tmp_path: Path, files: Files, authority: Authority
) -> None:
    """Connections that are there go on, with answers in between; new ones see the new certificate, within a second."""
    with listening(tmp_path, files.certificates()) as listener:
        with listener.connect(client(authority)) as before:
            assert (answer(before)[0], shown(before)) == (200, ("localhost", "first"))
            files.put(authority, "second")
            for _ in range(200):
                with listener.connect(client(authority)) as after:
                    assert answer(after)[0] == answer(before)[0] == 200
                    found = shown(after)
                if found == ("localhost", "second"):
                    break
            assert found == ("localhost", "second")
            assert answer(before)[0] == 200


def test_files_that_do_not_fit_change_nothing(tmp_path: Path, files: Files, authority: Authority) -> None:
    """A key of another certificate, or no PEM: what was read before is shown, and what is wrong is told."""
    certificates = files.certificates()
    other, _ = authority.sign("other", "DNS:localhost")
    with listening(tmp_path, certificates) as listener:
        for content in (other.read_bytes(), b"no PEM", b""):
            write_private(files.cert, content)
            while not certificates.problem:
                assert exchanged(listener, ASK, client(authority))[0] == 200
            assert "admin.tls.cert" in certificates.problem
            with listener.connect(client(authority)) as connection:
                assert shown(connection) == ("localhost", "first")
            certificates.problem = None


def test_plain_http_and_old_tls_are_refused(tmp_path: Path, files: Files, authority: Authority) -> None:
    """Nothing is answered in the clear, nor below TLS 1.2; the listener goes on."""
    with listening(tmp_path, files.certificates()) as listener:
        assert exchanged(listener, ASK)[0] == 0
        old = client(authority)
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError, match=r"SSL|reset|EOF|protocol|alert"):
            listener.connect(old)
        assert exchanged(listener, ASK, client(authority))[0] == 200


def test_refusals_arrive_over_tls(tmp_path: Path, files: Files, authority: Authority) -> None:
    """What breaks a limit is told before the connection ends."""
    with listening(tmp_path, files.certificates()) as listener:
        for name in ("long head", "two hosts", "large body"):
            content, status = BOUNDED[name]
            assert exchanged(listener, content, client(authority))[0] == status


NAMED = b"GET /named HTTP/1.1\r\nhost: 127.0.0.1\r\n%s\r\n"


def test_certificate_names_who_asks(
    tmp_path: Path, files: Files, authority: Authority, stranger: Authority
) -> None:
    """A client certificate that tokens.toml names needs no token; another opens nothing; a token goes before it."""
    write_private(
        tmp_path / TABLE,
        b'[[certificate]]\nsubject = "ops.example"\nprincipal = "ops"\nscopes = ["read"]\n',
    )
    ops, other = authority.sign("ops", "DNS:ops.example"), authority.sign("other", "DNS:other.example")
    forged = stranger.sign("ops", "DNS:ops.example")
    with listening(tmp_path, files.certificates(clients=True)) as listener:
        status, told = exchanged(listener, NAMED % b"", client(authority, ops))
        assert (status, told.endswith(b"token:ops ops.example")) == (200, True)
        # The app here has no table of errors: a refusal is whatever Starlette makes of it, and no answer of ours.
        for own in (other, None):
            status, told = exchanged(listener, NAMED % b"", client(authority, own))
            assert (status, b"token:" in told) == (500, False)
        wrong = NAMED % b"authorization: Bearer nope\r\n"
        assert exchanged(listener, wrong, client(authority, ops))[0] == 500
        assert exchanged(listener, NAMED % b"", client(authority, forged))[0] == 0


def test_authority_of_clients_is_renewed(
    tmp_path: Path, files: Files, authority: Authority, stranger: Authority
) -> None:
    """A certificate of an authority that is no longer named opens nothing at the next connection."""
    certificates = files.certificates(clients=True)
    own = authority.sign("ops", "DNS:ops.example")
    with listening(tmp_path, certificates) as listener:
        assert exchanged(listener, ASK, client(authority, own))[1].endswith(b"- ops.example")
        write_private(files.client_ca, stranger.ca.read_bytes())
        for _ in range(200):
            status, _ = exchanged(listener, ASK, client(authority, own))
            if status == 0:
                break
        assert status == 0
        assert exchanged(listener, ASK, client(authority))[0] == 200


def test_own_processes_know_the_listener_by_its_certificate(
    tmp_path: Path, files: Files, authority: Authority
) -> None:
    """They take the one that control left in the state directory, by whatever name, and no other of its authority."""
    with listening(tmp_path, files.certificates()) as listener:
        assert (tmp_path / PUBLIC).stat().st_mode & 0o777 == 0o600
        assert exchanged(listener, ASK, pinned_to(tmp_path / PUBLIC))[0] == 200
        other, _ = authority.sign("other", "DNS:localhost")
        with pytest.raises(ssl.SSLError):
            listener.connect(pinned_to(other))
    with listening(tmp_path):
        assert not (tmp_path / PUBLIC).exists()


def test_own_processes_trust_one_certificate_and_get_no_key(
    tmp_path: Path, files: Files, authority: Authority
) -> None:
    """Of a file that holds the key and the authority, too, the certificate alone is left for them: else whatever that
    authority signed would be taken for the listener."""
    content = files.cert.read_bytes()
    write_private(files.cert, files.key.read_bytes() + content + authority.ca.read_bytes())
    with listening(tmp_path, files.certificates()) as listener:
        assert (tmp_path / PUBLIC).read_bytes() in content
        assert b"KEY" not in (tmp_path / PUBLIC).read_bytes()
        assert exchanged(listener, ASK, pinned_to(tmp_path / PUBLIC))[0] == 200
        files.put(authority, "other")
        trusting = pinned_to(tmp_path / PUBLIC)
        while (tmp_path / PUBLIC).read_bytes() in content:
            assert listener.tokens.problem is None
        with pytest.raises(ssl.SSLError):
            listener.connect(trusting)


def test_certificate_that_ends_opens_nothing_on_a_kept_connection(
    tmp_path: Path, files: Files, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection may live for days: who asks is no longer known once the client's certificate is over."""
    own = authority.sign("ops", "DNS:ops.example")
    with (
        listening(tmp_path, files.certificates(clients=True)) as listener,
        listener.connect(client(authority, own)) as connection,
    ):
        assert answer(connection)[1].endswith(b"- ops.example")
        later_s = time.time() + 3 * 86_400
        monkeypatch.setattr(admin_door.time, "time", lambda: later_s)
        assert answer(connection)[1].endswith(b"- ")


def test_certificate_that_could_not_be_read_is_read_again(
    tmp_path: Path, files: Files, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor left, say: the new one is taken up once it can be, though no file changes any more."""
    certificates = files.certificates(clients=True)
    files.put(authority, "second")
    with monkeypatch.context() as patched:
        patched.setattr(certificates, "_read", raiser(ConfigInvalid("no descriptor left")))
        assert not certificates.reload()
        assert certificates.problem == "no descriptor left"
    assert certificates.reload()
    assert certificates.problem is None


def raiser(exc: Exception) -> Callable[[], Any]:
    """A function that raises."""

    def raising() -> Any:
        raise exc

    return raising


def test_handshakes_that_are_never_done_hold_few_descriptors(
    tmp_path: Path, files: Files, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever connects and says nothing: beyond the limit the longest goes, and honest clients are served."""
    monkeypatch.setattr(handshakes, "HANDSHAKE_S", 600.0)
    with listening(tmp_path, files.certificates()) as listener, contextlib.ExitStack() as silent:
        many = [silent.enter_context(listener.connect()) for _ in range(HANDSHAKES_MAX + 50)]
        assert exchanged(listener, ASK, client(authority))[0] == 200
        assert [connection.recv(1) for connection in many[:51]] == [b""] * 51
        many[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            many[-1].recv(1)


def test_sidecar_workers_and_commands_speak_tls(tmp_path: Path, files: Files) -> None:
    """Each knows the listener by the certificate in the state directory; nothing need be configured."""
    write_private(tmp_path / "worker.token", b"0" * 64)
    with listening(tmp_path, files.certificates()) as listener:
        url = f"https://127.0.0.1:{listener.port}"
        (tmp_path / "endpoints.json").write_bytes(msgspec.json.encode({"data_url": "", "admin_url": url}))
        assert act._exchange_with(url, tmp_path / PUBLIC)("GET", "/who", {}, None).status == 200
        assert asyncio.run(ControlClient(url, tmp_path)._post("/body", b"abc")) == (200, 3)
        with contextlib.closing(admin_client(None, str(tmp_path), Access())) as admin:
            assert admin.send("POST", "/body").status == 200


def test_beyond_loopback_tls_and_a_token_are_needed(tmp_path: Path, files: Files) -> None:
    """Each missing one is named; a token that is over is none."""
    with pytest.raises(ConfigInvalid, match=r"admin\.host is '0\.0\.0\.0'.*admin\.tls\.cert"):
        load(overrides=["admin.host=0.0.0.0"], environ={})
    tls = [f"admin.tls.cert={files.cert}", f"admin.tls.key={files.key}"]
    admin = load(overrides=["admin.host=0.0.0.0", *tls], environ={})[0].admin
    now_ns = 1
    store = TokenStore(tmp_path, lambda: now_ns)
    with pytest.raises(ConfigInvalid, match=r"needs a live token in tokens\.toml"):
        certificates_of(admin, Tokens(tmp_path))
    token, _ = store.drawn(Asked(principal="ci", scopes=("read",), expires_ns=2))
    store.add(token)
    with pytest.raises(ConfigInvalid, match=r"needs a live token in tokens\.toml"):
        certificates_of(admin, Tokens(tmp_path))
    token, _ = store.drawn(Asked(principal="ci", scopes=("read",)))
    store.add(token)
    assert certificates_of(admin, Tokens(tmp_path)) is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": 0o644}, "may be read by others"),
        ({"cert": b""}, r"admin\.tls\.cert"),
        ({"key": b"no key"}, r"admin\.tls\.key"),
        ({"client_ca": b"nobody"}, r"admin\.tls\.client_ca"),
    ],
    ids=str,
)
def test_tls_that_cannot_be_had_is_named(files: Files, change: dict[str, Any], said: str) -> None:
    """At start: the setting, and what was expected."""
    for name, value in change.items():
        path = getattr(files, name)
        if isinstance(value, int):
            path.chmod(value)
        else:
            write_private(path, value)
    with pytest.raises(ConfigInvalid, match=said):
        files.certificates(clients=True)
