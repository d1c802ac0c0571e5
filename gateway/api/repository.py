"""The repository over the data listener: what lies in it, and load and unload where they are switched on.

Starlette door -> **repository** -> control's admin listener -> engine -> workers. A worker changes nothing by itself:
it asks control with a token that may do no more, and control answers once every worker has taken the change up. Off by
default (`data.model_control`): a web page must not unload a model on loopback.

Sources: Open Inference Protocol, REST; its model repository extension.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.incoming import read_small_json
from gateway.api.outgoing import json_response
from gateway.control.tokens import WORKER
from gateway.errors import ControlUnavailable, Forbidden, InvalidRequest
from gateway.serving import Models
from gateway.tls import pinned_to
from loaders.errors import RepositoryMissing
from loaders.repository import Found, scan

CHANGE_TIMEOUT_S = 600.0
"""A load may take minutes; control ends its own wait before."""
CHANGES_MAX = 4
"""Loads and unloads that one worker waits for at a time; further ones wait their turn."""
SCAN_KEPT_S = 0.5
"""The repository is looked at once in so long, however often its index is asked for."""
_STATES = {"ready": "READY", "loading": "LOADING", "unloading": "UNLOADING"}


class IndexBody(msgspec.Struct):
    """What an index is asked with."""

    ready: bool = False


class ChangeBody(msgspec.Struct):
    """What a load or unload is asked with."""

    parameters: dict[str, Any] | None = None


class ControlClient:
    """Load and unload, asked of the control process.

    Args:
        admin_url: where control listens.
        state_dir: where it keeps the worker's token.
    """

    def __init__(self, admin_url: str, state_dir: Path) -> None:
        self._address = urlsplit(admin_url)
        self._public = state_dir / "admin.pem"
        self._token_path = state_dir / f"{WORKER}.token"
        self._token = ""
        self._turns = asyncio.Semaphore(CHANGES_MAX)

    async def change(self, model: str, kind: str, by: str) -> tuple[int, Any]:
        """Load or unload all of a model; control's status and answer.

        Raises:
            ControlUnavailable: it does not answer.
        """
        content = orjson.dumps({"whole": True, "reason": f"{kind} asked over the data listener by {by}"})
        try:
            # Away while it waits, so that a worker can end: no thread is held.
            async with self._turns, asyncio.timeout(CHANGE_TIMEOUT_S):
                return await self._post(f"/admin/v1/models/{quote(model, safe='')}/{kind}", content)
        except (OSError, ValueError, IndexError) as exc:
            msg = "models cannot be loaded or unloaded at present: control does not answer; try again shortly"
            raise ControlUnavailable(msg) from exc

    async def _post(self, path: str, content: bytes) -> tuple[int, Any]:
        if not self._token:
            self._token = (await asyncio.to_thread(self._token_path.read_text)).strip()
        at = self._address
        tls = pinned_to(self._public) if at.scheme == "https" else None
        reader, writer = await asyncio.open_connection(at.hostname, at.port, ssl=tls)
        try:
            head = (
                f"POST {path} HTTP/1.1\r\nhost: {at.netloc}\r\nauthorization: Bearer {self._token}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
            )
            writer.write(head.encode() + content)
            told, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return int(told.split(b" ", 2)[1]), orjson.loads(body)


class Repository:
    """Handlers of `/v2/repository`.

    Args:
        root: the model repository; None where only what is loaded is known.
        control: None where load and unload are off.
    """

    def __init__(self, models: Models, root: Path | None, control: ControlClient | None) -> None:
        self._models = models
        self._root = root
        self._control = control
        self._seen = Found({}, ())
        self._seen_at_s = float("-inf")

    def routes(self) -> list[Route]:
        """Their addresses."""
        post = ["POST"]
        return [
            Route("/v2/repository/index", self.index, methods=post),
            Route("/v2/repository/models/{model}/load", self.load, methods=post),
            Route("/v2/repository/models/{model}/unload", self.unload, methods=post),
        ]

    async def index(self, request: Request) -> Response:
        """Every version on disk or loaded, its state over all workers and why; with `ready` those that are ready."""
        body = await read_small_json(request, IndexBody)
        known = {name: set(versions) for name, versions in (await self._scanned()).models.items()}
        for name in self._models.names:
            entry = self._models.get(name)
            if entry is not None:
                known.setdefault(name, set()).update(entry.states)
        listed = []
        for name in sorted(known):
            for version in sorted(known[name], key=int):
                state, reason = self._models.state_over_workers(name, version)
                shown = _STATES.get(state, "UNAVAILABLE")
                if not body.ready or shown == "READY":
                    why = reason or ("unloaded" if state == "absent" else "")
                    listed.append({"name": name, "version": version, "state": shown, "reason": why})
        return json_response(listed)

    async def load(self, request: Request) -> Response:
        """Load a model; answered once it is ready in every worker, or with the reason why not."""
        return await self._change(request, "load")

    async def unload(self, request: Request) -> Response:
        """Let go of all versions of a model; answered once no worker serves it."""
        return await self._change(request, "unload")

    async def _change(self, request: Request, kind: str) -> Response:
        if self._control is None:
            msg = f"{kind} over this listener is off; set data.model_control = true, or use `tidegate model {kind}`"
            raise Forbidden(msg)
        body = await read_small_json(request, ChangeBody)
        for name in body.parameters or {}:
            if kind == "load" or name != "unload_dependents":
                msg = (
                    f"parameter {name[:100]!r} of {kind} is not served: models and their configuration are put into"
                    " the repository's directory, then loaded by name"
                )
                raise InvalidRequest(msg)
        model = request.path_params["model"]
        status, answer = await self._control.change(model, kind, request.state.principal.name)
        if status >= 400:
            return json_response(answer, status)
        return json_response({"name": model, kind: True}, status)

    async def _scanned(self) -> Found:
        now_s = time.monotonic()
        if self._root is not None and now_s - self._seen_at_s > SCAN_KEPT_S:
            self._seen_at_s = now_s
            try:
                # On a thread: disks can be slow.
                self._seen = await asyncio.to_thread(scan, self._root)
            except RepositoryMissing:
                self._seen = Found({}, ())
        return self._seen
