"""Where the commands of `tidegate audit` read: a state directory's spool, or the topic."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gateway.audit.feed import Feed, Positions
from gateway.audit.spool_feed import SpoolFeed
from gateway.cli.client import state_dir_option, state_directory
from gateway.cli.failures import Stop
from gateway.cli.forwarding import reader_arguments, reasons

if TYPE_CHECKING:
    from gateway.audit.topic_look import TopicLook

DEFAULT_TOPIC = "tidegate.events.v1"


class Place(NamedTuple):
    """Where records are read."""

    spool: Path
    kafka: str | None
    topic: str

    def feed(
        self, positions: Positions | None = None, since_ns: int | None = None, group: str | None = None
    ) -> Feed:
        """Open the feed: the topic when `--kafka` is given, else the spool.

        Args:
            positions: where to go on, in the spool.
            since_ns: begin at that time.
            group: a consumer group of the topic, that goes on where it ended.

        Raises:
            GatewayError: no broker answers, or the topic does not exist.
        """
        # What feeds say in the log stands in `Missed` already.
        logging.getLogger("tidegate.feed").addHandler(logging.NullHandler())
        if self.kafka is not None:
            from gateway.audit.kafka_feed import KafkaFeed

            # What the client library would say on stderr stands in the error already.
            logging.getLogger("aiokafka").addHandler(logging.NullHandler())
            arguments = reader_arguments(self.kafka)
            with reasons(self.kafka):
                return KafkaFeed(self.kafka, self.topic, group=group, since_ns=since_ns, arguments=arguments)
        return SpoolFeed(self.spool, positions, since_ns=since_ns)

    def look(self) -> TopicLook:
        """Open the topic for looks.

        Raises:
            FeedUnreachable: no broker answers, or the topic does not exist.
        """
        from gateway.audit.topic_look import TopicLook

        logging.getLogger("aiokafka").addHandler(logging.NullHandler())
        where = self.kafka or ""
        arguments = reader_arguments(where)
        with reasons(where):
            return TopicLook(where, self.topic, arguments)


def spool_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--state-dir` and hand it the spool's directory as `where`."""

    @state_dir_option
    @functools.wraps(function)
    def wrapped(*args: Any, state_dir: str | None, **rest: Any) -> Any:
        return function(*args, where=_spool(state_directory(state_dir)), **rest)

    return wrapped


def place_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--state-dir`, `--kafka` and `--topic`, and hand it a `Place`."""

    @state_dir_option
    @click.option("--kafka", metavar="HOST:PORT", help="Read the topic instead of the spool.")
    @click.option("--topic", default=DEFAULT_TOPIC, show_default=True, help="Which topic.")
    @functools.wraps(function)
    def wrapped(*args: Any, state_dir: str | None, kafka: str | None, topic: str, **rest: Any) -> Any:
        where = Path() if kafka is not None else _spool(state_directory(state_dir))
        return function(*args, place=Place(where, kafka, topic), **rest)

    return wrapped


def _spool(state_dir: Path) -> Path:
    where = state_dir / "spool"
    if not where.is_dir():
        msg = f"no log in {state_dir}: name the gateway's state directory with --state-dir"
        raise Stop(msg)
    return where
