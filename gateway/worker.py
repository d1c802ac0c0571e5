"""A worker: one process of the data plane, `python -P -m gateway.worker --index N`.

Composes the request path: claims a source and opens its epoch, maps the fleet's memory, loads what the
snapshot asks for, then serves the shared listening socket through the fast door. No admin routes; the
only thing it writes is its own ring and its own words of shared memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import uvicorn
import uvloop

from gateway import budget, counting, logs, process
from gateway import config as configuration
from gateway import fleet as words_of
from gateway.api.askers import Askers
from gateway.api.codec import Codec
from gateway.api.crowd import Limits
from gateway.api.encode import RunEncoder, label_names
from gateway.api.fast import FastProtocol
from gateway.api.guarding import Guard
from gateway.api.infer import DataApi
from gateway.api.problems import answered, reply_of, status_of
from gateway.api.repository import ControlClient
from gateway.api.server import Server
from gateway.append import Appender
from gateway.audit.source import claim_source
from gateway.audit.writer import Writer
from gateway.capture import check_room
from gateway.claims import ROUTING_KEY
from gateway.control.tokens import CLIENTS, Tokens
from gateway.core import Core
from gateway.errors import GatewayError, ModelNotReady, Overloaded, RateLimited
from gateway.fairness import Bodies
from gateway.fleet import Fleet
from gateway.head import TIMEOUT_MAX_MS
from gateway.memory import memory_plan
from gateway.redaction import read_key
from gateway.serving import Models
from gateway.settings import Data
from gateway.vitals import Vitals
from loaders.errors import ModelError
from loaders.registry import Registry
from loaders.session import Session, load
from loaders.verdicts import Trials

log = logging.getLogger("tidegate.worker")

POLL_S = 0.02
"""How soon an idle worker sees a new generation."""
GRACE_S = TIMEOUT_MAX_MS // 1000 + 1
"""What is in flight when the lame-duck time is over has its own deadline; this is beyond all of them."""
ENDING_S = 1.0
"""So long requests that the server gave up may take to say so."""
HURRIED = 1
"""Exit code of a worker that was told twice, and did not wait for what was in flight."""
SETTLE_S = 60.0
"""Loading at start may take this long before the worker accepts anyway."""
ROUTE_S = 5.0
"""And so long may the first route of a new model take."""


class Worker:
    """The composed parts of one worker.

    Args:
        index: its place in the fleet.
        context: what the supervisor handed over.
        after: the index of the worker whose place it is to take, in a rolling restart.
    """

    def __init__(
        self,
        index: int,
        context: process.Context,
        loop: asyncio.AbstractEventLoop,
        after: int | None = None,
    ) -> None:
        self.index = index
        self.context = context
        self.loop = loop
        self.config = config = configuration.decode(context.config)
        self.fleet = Fleet.open(Path(context.fleet_path))
        self.words = self.fleet.worker(index)
        # Registered before the snapshot is read, so that control waits for this worker's generation.
        self.words[words_of.PID] = os.getpid()
        self.words[words_of.STARTED_NS] = time.time_ns()
        self.words[words_of.HEARTBEAT_NS] = time.monotonic_ns()
        self.words[words_of.STATE] = words_of.STARTING
        self.vitals = Vitals(self.words)
        source = claim_source(
            context.state_path,
            context.gateway_id,
            "worker",
            Path(context.ring_dir),
            config.audit.ring_bytes,
        )
        self.writer = Writer(source, context.gateway_id)
        self.words[words_of.EPOCH] = source.epoch
        self.appender = Appender(loop, self.writer, config.audit)
        self.models = Models(
            index,
            self.fleet,
            context.state_path / "control" / "snapshot",
            config.batch,
            (_make_codec, _make_encoder, status_of),
        )
        self.models.log_event = self.appender.log
        self.models.redaction_key = read_key(context.state_path)
        self.models.routing_key = read_key(context.state_path, ROUTING_KEY)
        self.intra_op_threads = budget.intra_op_threads(config, budget.effective_cpus())
        self.core = Core(loop, config, self.models, self.appender, reply_of, self.writer.prefix)
        self.trials = Trials(
            context.state_path / "trials",
            cpu_s=config.session.trial_cpu_s,
            memory_bytes=config.session.trial_memory_bytes,
            plan=memory_plan(config),
            run=str(context.supervisor_pid),
        )
        self.registry = Registry(self._load, self._changed)
        self.models.registry = self.registry
        self.tokens = Tokens(context.state_path, CLIENTS, word=lambda: self.fleet.tokens)
        self._after = after
        self.server: Server | None = None
        self.askers = Askers(config.data.proxies, counts=config.limits.is_on, tokens=self.tokens)
        self.door: type[FastProtocol] | None = None

    def _load(self, model: str, version: str) -> Session:
        # On the loader's thread. Not before this worker serves: it must be back in time, and gives way to nobody. A
        # session's own threads would inherit it, and serve with it.
        if self.intra_op_threads == 1 and self.words[words_of.STATE] != words_of.STARTING:
            process.give_way()
        session = load(
            Path(self.context.models),
            model,
            version,
            providers=self.config.session.providers,
            intra_op_threads=self.intra_op_threads,
            trials=self.trials,
        )
        try:
            check_room(session, self.appender.max_frame_bytes)
        except ModelError:
            if self.registry.get(model, version) is None:
                # It may be mended in place: nothing of it was served.
                self.trials.release(model, version)
            raise
        return session

    def _changed(self, model: str, version: str, state: str, reason: str | None) -> None:
        # On the loader's thread.
        if state == "unloaded":
            self.trials.release(model, version)
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.models.on_change, model, version, state, reason)

    async def run(self) -> bool:
        """Load, serve, drain. False: it was told to end at once, and did not wait for what was in flight.

        Raises:
            ModelNotReady: it is to take another's place, and cannot answer what that one does.
        """
        for event in self.models.aborted_events():
            self.appender.log(event)
        self.models.start()
        self.appender.flush()
        ticking = asyncio.create_task(self._tick())
        await self._settle()
        gc.collect()
        gc.freeze()
        # Few cycles are made per request; the default would look for them every twenty requests.
        gc.set_threshold(20_000, 10, 10)
        data = self.config.data
        self.door = door = FastProtocol.bind(
            self.core,
            takes_fast=data.door == "fast",
            connections_max=data.connections_max,
            limits=_limits(data),
            askers=self.askers,
            bodies=Bodies(self.config.limits),
        )
        self.server = Server(
            uvicorn.Config(
                self._api().app(),
                http=door,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=data.keep_alive_s,
                timeout_graceful_shutdown=GRACE_S,
            ),
            lame_duck_s=data.lame_duck_s,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._stop)
        self.words[words_of.STATE] = words_of.SERVING
        sock = socket.socket(fileno=self.context.data_fd)
        await self.server.serve(sockets=[sock])
        self.words[words_of.STATE] = words_of.DRAINING
        if ending := set(self.server.server_state.tasks):
            # They were told to end: what they answer is logged, so the log is closed after them.
            await asyncio.wait(ending, timeout=ENDING_S)
        while (self.core.inflight or self.appender.held) and not self.server.force_exit:
            await asyncio.sleep(0.005)
        ticking.cancel()
        self._each_second()
        self.writer.close()
        if self.server.force_exit:
            return False
        self.core.close()
        self.registry.close()
        self.trials.close()
        return True

    def _api(self) -> DataApi:
        """What the Starlette door serves."""
        data, state_dir = self.config.data, self.context.state_path
        guard = Guard(self.tokens, on_loopback=data.on_loopback, hosts=data.hosts)
        control = ControlClient(self.context.admin_url, state_dir) if data.model_control else None
        root, level = Path(self.context.models), self.config.audit.level
        return DataApi(self.core, _limits(data), level, guard, root=root, control=control, askers=self.askers)

    async def _settle(self) -> None:
        """Wait with accepting until what carries weight is loaded; connections wait in the socket's queue.

        A primary that cannot be loaded is not waited for, nor is a control process that does not come. But who is to
        take another's place has all that the other has, or ends: the other serves on.
        """
        while self._after is not None:
            waits, failed = self.fleet.behind(self.index, self._after)
            if failed:
                msg = f"{' and '.join(failed)} did not load here; worker {self._after} serves on with what it has"
                raise ModelNotReady(msg)
            if not waits:
                break
            await asyncio.sleep(POLL_S)
        started = self.loop.time()
        while not self.models.settled and self.loop.time() < started + SETTLE_S:
            await asyncio.sleep(0.01)
        settled = self.loop.time()
        while self.models.awaits_route and self.loop.time() < settled + ROUTE_S:
            await asyncio.sleep(0.01)

    def _stop(self) -> None:
        """Be a lame duck, then end; told again: end."""
        if self.server is None or self.door is None:
            return
        connections = len(self.server.server_state.connections)
        log.info("drain", extra={"inflight": self.core.inflight, "connections": connections})
        self.words[words_of.STATE] = words_of.DRAINING
        self.door.crowd.lame = True
        self.server.leave()

    async def _tick(self) -> None:
        """The heartbeat, and what needs a clock rather than a request."""
        next_second = 0.0
        while True:
            now_s = self.loop.time()
            self.words[words_of.HEARTBEAT_NS] = time.monotonic_ns()
            self.vitals.beat(now_s, POLL_S)
            self.models.poll()
            if self.tokens.follow():
                for connection in self._connections():
                    connection.forget_token()
            self.models.end_leases(time.time_ns())
            self.appender.flush()
            counting.publish()
            if now_s >= next_second:
                next_second = now_s + 1.0
                self.writer.heartbeat()
                self._each_second()
                for connection in self._connections():
                    connection.reap(now_s)
            await asyncio.sleep(POLL_S)

    def _connections(self) -> list[FastProtocol]:
        found = () if self.server is None else self.server.server_state.connections
        return [connection for connection in found if isinstance(connection, FastProtocol)]

    def _each_second(self) -> None:
        """What is summed and told once a second; a last time when all is answered."""
        self.appender.flush_sums()
        self.tokens.reload()
        counting.publish()
        self.models.publish_waiting()
        words, ring, vitals = self.words, self.writer.ring, self.vitals
        words[words_of.INFLIGHT] = self.core.inflight
        words[words_of.HELD_REPLIES] = self.appender.held
        words[words_of.LOG_UNAVAILABLE] = int(self.appender.unavailable)
        words[words_of.RING_USED_BYTES] = ring.committed - ring.synced
        vitals.count(words_of.REFUSED, self.core.refused)
        vitals.count(words_of.GAPS, self.appender.gaps)
        vitals.count(words_of.TURNS, self.core.turns)
        admission = self.core.admission
        vitals.errors(
            answered, {Overloaded.code: admission.turned_away, RateLimited.code: admission.rate_limited}
        )
        vitals.process()
        if self.server is not None and self.door is not None:
            vitals.connections(len(self.server.server_state.connections), self.door.crowd)


def _limits(data: Data) -> Limits:
    return Limits(
        body_max_bytes=data.body_max_bytes,
        bodies_max_bytes=data.bodies_max_bytes,
        json_max_bytes=data.json_max_bytes,
        json_max_values=data.json_max_values,
        header_s=data.header_timeout_s,
        body_s=data.body_timeout_s,
        write_s=data.write_timeout_s,
        idle_s=data.keep_alive_s,
    )


def _make_codec(model: str, session: Session) -> Codec:
    return Codec(model, session.signature, batchable=session.batchable, rows_max=session.max_batch_rows)


def _make_encoder(model: str, version: str, session: Session) -> RunEncoder:
    labels = label_names(session)
    return RunEncoder(model, version, session.signature, batchable=session.batchable, labels=labels)


async def _main(index: int, context: process.Context, after: int | None) -> bool:
    return await Worker(index, context, asyncio.get_running_loop(), after).run()


def _raise_file_limit() -> None:
    """As many descriptors as the host allows: every connection takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Entry of the process."""
    _raise_file_limit()
    context = process.enter()
    parser = argparse.ArgumentParser()
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--after", type=int)
    asked = parser.parse_args()
    index = asked.index
    logs.setup(f"worker-{index}")
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if not runner.run(_main(index, context, asked.after)):
                # The log is closed. Runs that go on would end in an interpreter that is being taken apart.
                os._exit(HURRIED)
    except GatewayError as exc:
        sys.stderr.write(f"tidegate: {exc}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
