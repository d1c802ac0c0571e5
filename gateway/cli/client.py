"""How commands find a gateway and speak to it.

Where: `--admin` or `--url`, else what the supervisor wrote to `<state_dir>/endpoints.json`, else
the default ports. Who: the bearer token in `<state_dir>/admin.token`. Replies that refuse become
`Stop` with the gateway's own sentence and the exit code of docs/cli.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec

import gateway.config
from gateway.cli.failures import INPUT, NO, UNREACHABLE, Stop

DEFAULT_DATA_URL = "http://127.0.0.1:8080"
DEFAULT_ADMIN_URL = "http://127.0.0.1:8081"
REPOSITORY_FILE = "repository"
"""In the state directory, written by control: what it serves."""
TIMEOUT_S = 35.0
"""Above the longest deadline that a request may name (30 s)."""


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


class Client:
    """One listener of a gateway. Not thread-safe.

    Args:
        url: its base, such as http://127.0.0.1:8081.
        flag: the option that names it, for messages.
        token_file: read at the first request; None for the data listener.
    """

    def __init__(self, url: str, flag: str, token_file: Path | None = None) -> None:
        self.url = url.rstrip("/")
        self._flag = flag
        self._token_file = token_file
        # No proxies and no netrc from the environment: a loopback gateway is never behind them.
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)

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
        content = None
        if body is not None:
            sent["content-type"] = "application/json"
            content = msgspec.json.encode(body)
        try:
            reply = self._http.request(method, path, params=params, headers=sent, content=content)
        except httpx.TransportError as exc:
            if isinstance(exc, httpx.UnsupportedProtocol):
                raise
            raise Stop(self._no_gateway(exc), UNREACHABLE) from exc
        return self._answer(reply)

    def _authorization(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            token = self._token_file.read_text().strip()
        except OSError:
            return {}
        return {"authorization": f"Bearer {token}"}

    def _no_gateway(self, exc: httpx.TransportError) -> str:
        what = "no answer in time" if isinstance(exc, httpx.TimeoutException) else "no gateway answers"
        todo = f"start one with `tidegate serve`, or name it with {self._flag} URL"
        return f"{what} at {self.url}: {todo}"

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
        raise Stop(self._refusal(reply.status_code, body), _exit_code(reply.status_code))

    def _refusal(self, status: int, body: dict[str, Any]) -> str:
        text = " ".join(str(body["error"]).split())
        if status == 401 and self._token_file is not None:
            where = self._token_file.name
            return f"{text}: the token is read from {where} in the state directory; set --state-dir"
        if status == 412 and "revision" in body:
            return f"{text}; look again with `tidegate route show` and repeat"
        return text


def _exit_code(status: int) -> int:
    return NO if status in {409, 412, 423} or status >= 500 else INPUT


def quoted(name: str) -> str:
    """A model or version as one segment of a path.

    Raises:
        Stop: a name that no model can have.
    """
    if not name or any(not (c.isascii() and (c.isalnum() or c in "._-")) for c in name):
        msg = f"{name!r} is not a name: expected letters, digits, dot, dash and underscore"
        raise Stop(msg)
    return name


state_dir_option = click.option(
    "--state-dir",
    metavar="DIR",
    help="The gateway's state directory [default: from the configuration, ./.tidegate].",
)


def admin_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--admin` and `--state-dir`, and hand it a `Client` as `admin`."""

    @state_dir_option
    @click.option("--admin", "url", metavar="URL", help="The admin listener of the gateway.")
    @functools.wraps(function)
    def wrapped(*args: Any, url: str | None, state_dir: str | None, **rest: Any) -> Any:
        directory = state_directory(state_dir)
        found = read_endpoints(directory)
        url = url or (found.admin_url if found else DEFAULT_ADMIN_URL)
        return function(*args, admin=Client(url, "--admin", directory / "admin.token"), **rest)

    return wrapped


def data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--url` and `--state-dir`, and hand it a `Client` as `data`."""

    @state_dir_option
    @click.option("--url", metavar="URL", help="The data listener of the gateway.")
    @functools.wraps(function)
    def wrapped(*args: Any, url: str | None, state_dir: str | None, **rest: Any) -> Any:
        if url is None:
            found = read_endpoints(state_directory(state_dir))
            url = found.data_url if found else DEFAULT_DATA_URL
        return function(*args, data=Client(url, "--url"), **rest)

    return wrapped
