"""Where sidecar and mirror read the log: the spool of this host, or the topic. Before everything else.

`sidecar.source` says which. The same records come from both, in the same order within each epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from gateway.audit.feed import Feed, Positions
from gateway.audit.spool_feed import SpoolFeed
from gateway.errors import FeedUnreachable
from gateway.settings import Config

log = logging.getLogger("tidegate.shadow")

RETRY_S = 2.0


def reads_topic(config: Config) -> bool:
    """Whether the log is read from Kafka."""
    return config.sidecar.source == "kafka"


def open_feed(config: Config, spool: Path, positions: Positions) -> Feed:
    """A feed that goes on from `positions`.

    Raises:
        FeedUnreachable: no broker answers, or the topic is not there.
    """
    if not reads_topic(config):
        return SpoolFeed(spool, positions)
    from gateway.audit.brokers import client_arguments
    from gateway.audit.kafka_feed import KafkaFeed

    if config.kafka is None:
        msg = 'sidecar.source is "kafka" and kafka.bootstrap_servers is not set'
        raise FeedUnreachable(msg)
    return KafkaFeed(
        config.kafka.bootstrap_servers,
        config.kafka.topic,
        positions,
        arguments=client_arguments(config.kafka),
    )


def await_topic(config: Config, is_stopping: Callable[[], bool]) -> bool:
    """Wait until the topic can be read, where that is the log; says once when it cannot, and once when it can again.

    Called before a source is claimed: each claim is an epoch of the log, and a broker may be away for days.

    Returns:
        False when told to stop meanwhile.
    """
    told = False
    while reads_topic(config) and not is_stopping():
        try:
            open_feed(config, Path(), {}).close()
        except FeedUnreachable as exc:
            if not told:
                log.warning("topic_not_there", extra={"why": str(exc), "todo": "nothing: it is tried again"})
            told = True
            time.sleep(RETRY_S)
        else:
            if told:
                log.info("topic_is_back")
            break
    return not is_stopping()
