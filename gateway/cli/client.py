"""How commands find a gateway and speak to it.

Where: `--admin` or `--url`, else what the supervisor wrote to `<state_dir>/endpoints.json`, else
the default ports. Who: the bearer token in the file of `--token-file`, else in `<state_dir>/admin.token`. Replies that
refuse become `Stop` with the gateway's own sentence, what to do next (advice) and the exit code of docs/cli.md.
"""

from __future__ import annotations

import contextlib
import functools
import re
import secrets
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click
import httpx
import msgspec

import gateway.config
from gateway.cli.advice import next_step
from gateway.cli.failures import INPUT, NO, UNREACHABLE, Stop
from gateway.routing import NAME_PATTERN
from gateway.tls import pinned_to

DEFAULT_DATA_URL = "http://127.0.0.1:8080"
DEFAULT_ADMIN_URL = "http://127.0.0.1:8081"
REPOSITORY_FILE = "repository"
"""In the state directory, written by control: what it serves."""
TIMEOUT_S = 35.0
"""Above the longest deadline that a request may name (30 s)."""
AGAIN_S = 5.0
"""So long a change whose answer was lost is asked for again: control is started anew within a second."""
KEY_HEADER = "idempotency-key"
_NAME = re.compile(NAME_PATTERN)


class Endpoints(msgspec.Struct, frozen=True):
    """`<state_dir>/endpoints.json`, written by the supervisor once its sockets are open."""

    data_url: str
    admin_url: str
    pid: int = 0


class Answer(msgspec.Struct):
    """A reply that did not refuse: status, headers (lower-case names) and decoded JSON body."""

    status: int
    headers: dict[str, str]
    body: Any


def state_directory(given: str | None) -> Path:
    """`--state-dir`, else the configuration's.

    Raises:
        ConfigInvalid: the configuration cannot be read.
    """
    return Path(given if given is not None else gateway.config.load()[0].state_dir)


def repository(state_dir: Path) -> Path:
    """What the gateway of this state directory served last, else the configuration's."""
    try:
        return Path((state_dir / REPOSITORY_FILE).read_text().strip())
    except OSError:
        return Path(gateway.config.load()[0].models)


def read_endpoints(state_dir: Path) -> Endpoints | None:
    """What the supervisor wrote, None when there is nothing readable."""
    try:
        return msgspec.json.decode((state_dir / "endpoints.json").read_bytes(), type=Endpoints)
    except (OSError, msgspec.MsgspecError):
        return None


class Access(NamedTuple):
    """Who a client is, and whom it takes for the gateway.

    Attributes:
        token_file: read at every request; None: no token is sent.
        named: the user named the file; one that cannot be read is then an error, not "no token".
        cacert: PEM of the authority that signed the gateway's certificate; None: the system's.
        cert: PEM of the client's own certificate, and its key where it is not in the same file.
        known_by: PEM of the gateway's own certificate, which is then the only one that is taken, by whatever name.
    """

    token_file: Path | None = None
    named: bool = False
    cacert: str | None = None
    cert: tuple[str, str | None] | None = None
    known_by: Path | None = None


class Client:
    """One listener of a gateway. Not thread-safe.

    Args:
        url: its base, such as http://127.0.0.1:8081, or unix:/run/tidegate/admin.sock.
        flag: the option that names it, for messages.
        timeout_s: for each answer.

    Every change over the admin listener carries an idempotency key, drawn once per client and counted per change: one
    whose answer was lost on the way is asked for again by itself, for `AGAIN_S`, and is made once.
    """

    def __init__(
        self, url: str, flag: str, access: Access | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.url = url.rstrip("/")
        self._flag = flag
        self._access = access = access or Access()
        self._key = secrets.token_hex(16)
        self._changes = 0
        self._http = _connection(self.url, access, timeout_s)

    def wait_at_most(self, timeout_s: float) -> None:
        """From now on, for each answer."""
        self._http.timeout = httpx.Timeout(timeout_s)

    def close(self) -> None:
        """Let its connections go."""
        self._http.close()

    def get(self, path: str, **params: Any) -> Answer:
        """GET `path`.

        Raises:
            Stop: refused (1 or 2) or unreachable (3).
        """
        return self.send("GET", path, params=params)

    def send(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        body: Any = None,
    ) -> Answer:
        """One request; `body` goes as JSON.

        Raises:
            Stop: refused (1 or 2) or unreachable (3).
        """
        sent = {"accept": "application/json", **self._authorization(), **(headers or {})}
        is_change = method != "GET" and path.startswith("/admin/")
        if is_change and KEY_HEADER not in sent:
            self._changes += 1
            sent[KEY_HEADER] = f"{self._key}-{self._changes}"
        content = None
        if body is not None:
            sent["content-type"] = "application/json"
            content = msgspec.json.encode(body)
        request = self._http.build_request(method, path, params=params, headers=sent, content=content)
        return self._answer(self._exchange(request, is_change=is_change))

    def _exchange(self, request: httpx.Request, *, is_change: bool) -> httpx.Response:
        """Send it; a change whose answer was lost is sent again, under the same key."""
        until_s = None
        while True:
            try:
                return self._http.send(request)
            except httpx.UnsupportedProtocol:
                raise
            except httpx.TimeoutException as exc:
                raise Stop(self._no_answer(request, is_change=is_change), UNREACHABLE) from exc
            except httpx.TransportError as exc:
                lost = not isinstance(exc, httpx.ConnectError)
                now_s = time.monotonic()
                if until_s is None and is_change and lost:
                    until_s = now_s + AGAIN_S
                if until_s is None or now_s >= until_s:
                    raise Stop(self._no_gateway(exc), UNREACHABLE) from exc
                time.sleep(0.1)

    def _authorization(self) -> dict[str, str]:
        where = self._access.token_file
        if where is None:
            return {}
        if self._flag == "--admin" and self.url.startswith("http:") and not _is_here(self.url):
            msg = f"{self.url}: a token is not sent in clear beyond this host; name it as https://"
            raise Stop(msg)
        try:
            token = where.read_text().strip()
        except (OSError, UnicodeDecodeError) as exc:
            if self._access.named:
                why = exc.strerror if isinstance(exc, OSError) else "it is not text"
                msg = f"token file {where}: {why}; expected a file with a token of `tidegate token new`"
                raise Stop(msg) from exc
            return {}
        if not (token.isascii() and token.isprintable()):
            msg = f"token file {where}: what it holds is no token; expected one line, as `tidegate token new` prints it"
            raise Stop(msg)
        return {"authorization": f"Bearer {token}"}

    def _no_gateway(self, exc: httpx.TransportError) -> str:
        if isinstance(exc.__cause__, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(exc):
            return (
                f"{self.url}: no TLS with it: {' '.join(str(exc).split())[:200]}; name the authority that signed its"
                " certificate with --cacert FILE"
            )
        todo = f"start one with `tidegate serve`, or name it with {self._flag} URL"
        return f"no gateway answers at {self.url}: {todo}"

    def _no_answer(self, request: httpx.Request, *, is_change: bool) -> str:
        text = f"no answer in time at {self.url}"
        if not is_change:
            return (
                f"{text}: `tidegate fleet show` says what runs; or name another gateway with {self._flag} URL"
            )
        key = request.headers[KEY_HEADER]
        return (
            f"{text}: whether the change was made is not known; the same command with --idempotency-key {key} makes it"
            " once, whichever it was"
        )

    def _answer(self, reply: httpx.Response) -> Answer:
        try:
            body = msgspec.json.decode(reply.content) if reply.content else {}
        except msgspec.MsgspecError:
            body = None
        if reply.is_success and body is not None:
            return Answer(reply.status_code, {k.lower(): v for k, v in reply.headers.items()}, body)
        if not isinstance(body, dict) or "error" not in body:
            msg = (
                f"{self.url} answered {reply.status_code} in no form of ours: is that Tidegate's"
                f" address? Name it with {self._flag} URL"
            )
            raise Stop(msg, UNREACHABLE)
        told = next_step(body, reply.headers, reply.request.url.path, self._access.named)
        raise Stop(told, _exit_code(reply.status_code))


def _exit_code(status: int) -> int:
    """Refused as things are (come again, or change them first), or refused as it was asked."""
    return NO if status in {409, 412, 423, 429} or status >= 500 else INPUT


def _connection(url: str, access: Access, timeout_s: float) -> httpx.Client:
    verify: ssl.SSLContext | bool = True
    if url.startswith("https:"):
        try:
            verify = (
                ssl.create_default_context(cafile=access.cacert)
                if access.known_by is None
                else pinned_to(access.known_by)
            )
            if access.cert is not None:
                verify.load_cert_chain(*access.cert)
        except (OSError, ssl.SSLError) as exc:
            named = " ".join(name for name in (access.cacert, *(access.cert or ())) if name)
            msg = f"{named}: {exc.strerror or exc}; expected PEM files for --cacert, --cert and --key"
            raise Stop(msg) from exc
    if url.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=url.removeprefix("unix:").removeprefix("//"))
        return httpx.Client(base_url="http://localhost", timeout=timeout_s, transport=transport)
    # No proxies and no netrc from the environment: a loopback gateway is never behind them.
    return httpx.Client(base_url=url, timeout=timeout_s, trust_env=False, verify=verify)


def quoted(name: str) -> str:
    """A model or version as one segment of a path.

    Raises:
        Stop: a name that no model can have.
    """
    if _NAME.match(name) is None:
        msg = (
            f"{name!r} is not a name: expected letters, digits, dot, dash and underscore, at most 128, and not a sign"
            " first"
        )
        raise Stop(msg)
    return name


state_dir_option = click.option(
    "--state-dir",
    metavar="DIR",
    help="The gateway's state directory [default: from the configuration, ./.tidegate].",
)


def access_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what says who it is to the gateway, and hand it an `Access` as `access`."""

    @click.option(
        "--token-file",
        metavar="FILE",
        envvar="TIDEGATE_TOKEN_FILE",
        show_envvar=True,
        help="The token to show [default: admin.token in the state directory].",
    )
    @click.option("--cacert", metavar="FILE", help="PEM of who signed the gateway's certificate.")
    @click.option(
        "--cert", metavar="FILE", help="PEM of your own certificate, where the gateway asks for one."
    )
    @click.option(
        "--key", "cert_key", metavar="FILE", help="PEM of its key, where it is not in --cert's file."
    )
    @functools.wraps(function)
    def wrapped(*args: Any, **rest: Any) -> Any:
        token_file, cacert, cert, key = (
            rest.pop(name) for name in ("token_file", "cacert", "cert", "cert_key")
        )
        if key is not None and cert is None:
            msg = "--key is given without --cert: name the certificate that it belongs to"
            raise Stop(msg)
        access = Access(
            Path(token_file) if token_file else None,
            named=bool(token_file),
            cacert=cacert,
            cert=(cert, key) if cert is not None else None,
        )
        return function(*args, access=access, **rest)

    return wrapped


def _is_here(url: str) -> bool:
    """Whether an address is this host's alone."""
    return url.startswith("unix:") or urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}


def admin_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--admin`, `--state-dir` and those of `access_options`, and hand it a `Client` as `admin`."""

    @state_dir_option
    @click.option("--admin", "url", metavar="URL", help="The admin listener of the gateway.")
    @access_options
    @functools.wraps(function)
    def wrapped(*args: Any, url: str | None, state_dir: str | None, access: Access, **rest: Any) -> Any:
        with contextlib.closing(admin_client(url, state_dir, access)) as admin:
            return function(*args, admin=admin, **rest)

    return wrapped


def admin_client(
    url: str | None, state_dir: str | None, access: Access, timeout_s: float = TIMEOUT_S
) -> Client:
    """The admin listener that options name.

    Raises:
        ConfigInvalid: the configuration, which says where the state directory is, cannot be read.
    """
    directory = state_directory(state_dir)
    found = read_endpoints(directory)
    url = url or (found.admin_url if found else DEFAULT_ADMIN_URL)
    # A certificate says who asks; and the token of this host is nothing for another's gateway.
    is_own = found is not None and url == found.admin_url
    if access.token_file is None and access.cert is None and (is_own or _is_here(url)):
        access = access._replace(token_file=directory / "admin.token")
    public = directory / "admin.pem"
    if is_own and access.cacert is None and public.exists():
        # Left there by the gateway of this state directory: no authority need vouch for it.
        access = access._replace(known_by=public)
    return Client(url, "--admin", access, timeout_s)


def data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--url`, `--state-dir` and those of `access_options`, and hand it a `Client` as `data`."""

    @state_dir_option
    @click.option("--url", metavar="URL", help="The data listener of the gateway.")
    @access_options
    @functools.wraps(function)
    def wrapped(*args: Any, url: str | None, state_dir: str | None, access: Access, **rest: Any) -> Any:
        if url is None:
            found = read_endpoints(state_directory(state_dir))
            url = found.data_url if found else DEFAULT_DATA_URL
        with contextlib.closing(Client(url, "--url", access)) as data:
            return function(*args, data=data, **rest)

    return wrapped
