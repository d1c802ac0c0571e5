"""The control process: `python -P -m gateway.control`. Composes recovery, engine, placement and admin API."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

from gateway import config as configuration
from gateway import logs, process
from gateway.api.admin import AdminApi
from gateway.api.admin_server import AdminServer
from gateway.api.guarding import Guard
from gateway.audit.drained import sources_of, wait_drained
from gateway.audit.source import SMALL_RING_BYTES, claim_source
from gateway.audit.writer import Writer
from gateway.control.engine import Engine
from gateway.control.journal import Journal
from gateway.control.listener import certificates_of
from gateway.control.placement import Placement
from gateway.control.recovery import recover
from gateway.control.state import renumbered
from gateway.control.tokens import PRINCIPALS, Tokens, ensure_tokens
from gateway.errors import GatewayError, TokensUnusable
from gateway.fleet import SLOTS, Fleet
from gateway.settings import Config

log = logging.getLogger("tidegate.control")

ROUTES_S = 86_400.0
AGAIN_S = 5.0


async def _serve(context: process.Context) -> int:
    state_dir, ring_dir = context.state_path, Path(context.ring_dir)
    (state_dir / "control").mkdir(mode=0o700, exist_ok=True)
    lock = os.open(state_dir / "control" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    ensure_tokens(state_dir)
    tokens = Tokens(state_dir, PRINCIPALS)
    if tokens.problem is not None:
        raise TokensUnusable(tokens.problem)
    config = configuration.decode(context.config)
    certificates = certificates_of(config.admin, tokens)
    # For those who read the log later: where the bundles are that its records name.
    (state_dir / "repository").write_text(f"{context.models}\n")
    forget_absent(state_dir, config)
    fleet = Fleet.open(Path(context.fleet_path))
    source = claim_source(state_dir, context.gateway_id, "control", ring_dir, SMALL_RING_BYTES)
    if not wait_drained(ring_dir, sources_of(context.gateway_id, "control"), source.ring_path.name):
        log.warning("predecessor_not_drained")
        return 1
    path = state_dir / "control" / "snapshot"
    state = recover(path, state_dir / "spool", context.gateway_id)
    if fleet.generation == 0 and state.ledger.next_slot > SLOTS // 2:
        state = renumbered(state)
    writer = Writer(source, context.gateway_id)
    journal = Journal(state_dir / "spool", context.gateway_id)
    engine = Engine(state, writer, fleet, path, config.policy_of, journal)
    engine.publish()
    placement = Placement(engine, Path(context.models), config.models_watch_s)
    # Before the first change comes in: it would be placed without knowing what is on disk.
    await placement.first_look()
    guard = Guard(tokens, on_loopback=config.admin.on_loopback, hosts=config.admin.hosts, every=True)
    api = AdminApi(engine, placement, fleet, state_dir, ring_dir, tokens, guard)
    server = AdminServer(api.app(), certificates, state_dir)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: setattr(server, "should_exit", True))
    tasks = [
        asyncio.create_task(placement.run()),
        asyncio.create_task(_tick(engine, writer, server, api)),
        asyncio.create_task(_log_routes(engine)),
        asyncio.create_task(_catch_up(engine)),
        asyncio.create_task(_tell_leases(engine)),
    ]
    await server.serve(sockets=[socket.socket(fileno=context.admin_fd)])
    for task in tasks:
        task.cancel()
    writer.close()
    return 1 if engine.must_restart else 0


def forget_absent(state_dir: Path, config: Config) -> None:
    """Remove what forwarder and sidecar said of themselves in an earlier life, if they do not run in this one.

    It would grow old for ever in `/metrics`, and look like a process that died.
    """
    for name, runs in (("forwarder", config.kafka is not None), ("sidecar", config.sidecar.enabled)):
        if not runs:
            (state_dir / name / "status.json").unlink(missing_ok=True)


async def _tick(engine: Engine, writer: Writer, server: AdminServer, api: AdminApi) -> None:
    while True:
        writer.heartbeat()
        api.look_for_tokens()
        server.tick()
        if engine.must_restart:
            server.should_exit = True
        await asyncio.sleep(0.5)


async def _log_routes(engine: Engine) -> None:
    """At each epoch and daily: the full routes. At first, what the configuration has changed of them."""
    while True:
        wait_s = ROUTES_S
        try:
            await engine.release_leases()
            await engine.log_routes()
        except GatewayError as exc:
            wait_s = AGAIN_S
            log.warning("routes_not_logged", extra={"why": str(exc)})
        await asyncio.sleep(wait_s)


async def _catch_up(engine: Engine) -> None:
    """Log what took effect unlogged, as soon as the log takes it."""
    while True:
        await asyncio.sleep(1.0)
        try:
            await engine.catch_up()
        except (GatewayError, OSError) as exc:
            log.warning("changes_still_unlogged", extra={"why": str(exc)})


async def _tell_leases(engine: Engine) -> None:
    """The end of leases and the opening of breakers, so that they stand in the history beside what operators did."""
    while True:
        await asyncio.sleep(1.0)
        engine.note_breakers(time.time_ns())
        try:
            await engine.tell_leases_over(time.time_ns())
        except GatewayError as exc:
            log.warning("lease_end_not_logged", extra={"why": str(exc)})


def main() -> None:
    """Entry of the process."""
    context = process.enter()
    logs.setup("control")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started = time.monotonic()
    try:
        code = asyncio.run(_serve(context))
    except GatewayError as exc:
        sys.stderr.write(f"tidegate: {exc}\n")
        code = 2
    log.info("control_stopped", extra={"after_s": int(time.monotonic() - started)})
    raise SystemExit(code)


if __name__ == "__main__":
    main()
