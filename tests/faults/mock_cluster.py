"""Brokers of librdkafka's mock cluster in this process, for faults that a real broker does not have on demand.

confluent-kafka's wheel holds librdkafka with its `rd_kafka_mock_*` functions, called here by ctypes: brokers that
answer with a given error, late, not at all, or that say a partition has no leader. The functions carry no promise of
stability: the version is pinned in requirements-dev.lock; with a wheel that lacks them these tests skip (CI: fail).

What it is not: it keeps messages in memory (5 MB a partition), knows no topic settings, and does not check producers'
sequence numbers. What depends on those is proved on a real broker.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka
import pytest

PRODUCE, METADATA, INIT_PRODUCER_ID = 0, 3, 22
"""Kinds of requests (ApiKey)."""
NOT_LEADER, REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS, NOT_ENOUGH_AFTER_APPEND = 6, 7, 19, 20
MESSAGE_TOO_LARGE, OUT_OF_ORDER, TOPIC_AUTHORIZATION = 10, 45, 29
NO_ERROR = 0
TRANSPORT = -195
"""The connection breaks instead of an answer."""
_PRODUCER = 0


class MockAbsent(Exception):
    """This wheel of confluent-kafka has no mock cluster that can be called."""


def _library() -> ctypes.CDLL:
    libraries = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    found = sorted(libraries.glob("librdkafka*.so*"))
    if not found:
        msg = f"no librdkafka beside confluent-kafka {confluent_kafka.__version__}: expected a wheel"
        raise MockAbsent(msg)
    library = ctypes.CDLL(str(found[0]))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
    try:
        for name, result, arguments in (
            ("conf_new", pointer, []),
            ("conf_set", ctypes.c_int, [pointer, text, text, text, ctypes.c_size_t]),
            ("new", pointer, [ctypes.c_int, pointer, text, ctypes.c_size_t]),
            ("destroy", None, [pointer]),
            ("mock_cluster_new", pointer, [pointer, ctypes.c_int]),
            ("mock_cluster_destroy", None, [pointer]),
            ("mock_cluster_bootstraps", text, [pointer]),
            ("mock_topic_create", ctypes.c_int, [pointer, text, ctypes.c_int, ctypes.c_int]),
            ("mock_topic_set_error", None, [pointer, text, ctypes.c_int]),
            ("mock_push_request_errors_array", None,
             [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)]),
            ("mock_clear_request_errors", None, [pointer, ctypes.c_int16]),
            ("mock_partition_set_leader", ctypes.c_int, [pointer, text, number, number]),
            ("mock_broker_set_down", ctypes.c_int, [pointer, number]),
            ("mock_broker_set_up", ctypes.c_int, [pointer, number]),
            ("mock_broker_set_rtt", ctypes.c_int, [pointer, number, ctypes.c_int]),
        ):  # fmt: skip
            function = getattr(library, f"rd_kafka_{name}")
            function.restype, function.argtypes = result, arguments
    except AttributeError as exc:
        msg = f"librdkafka of confluent-kafka {confluent_kafka.__version__}: {exc}"
        raise MockAbsent(msg) from None
    return library


class MockCluster:
    """Brokers 1 to `brokers`; close it.

    Threading: the brokers run in threads of librdkafka's; methods may be called from any.

    Raises:
        MockAbsent: this wheel does not have it.
    """

    def __init__(self, brokers: int = 3) -> None:
        self._kafka = _library()
        self.brokers = range(1, brokers + 1)
        error = ctypes.create_string_buffer(256)
        settings = self._kafka.rd_kafka_conf_new()
        # The handle is nobody's client: it would complain of having no servers.
        self._kafka.rd_kafka_conf_set(settings, b"log_level", b"0", error, len(error))
        self._handle = self._kafka.rd_kafka_new(_PRODUCER, settings, error, len(error))
        if not self._handle:
            raise MockAbsent(error.value.decode())
        self._cluster = self._kafka.rd_kafka_mock_cluster_new(self._handle, brokers)
        self.bootstrap: str = self._kafka.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def topic(self, name: str, partitions: int = 1) -> None:
        """Make a topic that every broker has."""
        self._check(
            self._kafka.rd_kafka_mock_topic_create(
                self._cluster, name.encode(), partitions, len(self.brokers)
            )
        )

    def topic_error(self, name: str, code: int) -> None:
        """What metadata and produce requests of a topic are answered from now on; `NO_ERROR`: as ever."""
        self._kafka.rd_kafka_mock_topic_set_error(self._cluster, name.encode(), code)

    def push_errors(self, kind: int, codes: Sequence[int]) -> None:
        """The next requests of a kind are answered with these, one each."""
        array = (ctypes.c_int * len(codes))(*codes)
        self._kafka.rd_kafka_mock_push_request_errors_array(self._cluster, kind, len(codes), array)

    def clear_errors(self, kind: int) -> None:
        """Of those that were not used."""
        self._kafka.rd_kafka_mock_clear_request_errors(self._cluster, kind)

    def leader(self, topic: str, partition: int, broker: int) -> None:
        """Who leads a partition; -1: nobody."""
        self._check(
            self._kafka.rd_kafka_mock_partition_set_leader(self._cluster, topic.encode(), partition, broker)
        )

    def down(self, *brokers: int) -> None:
        """They close all connections and take none; all of them where none is named."""
        for broker in brokers or self.brokers:
            self._check(self._kafka.rd_kafka_mock_broker_set_down(self._cluster, broker))

    def up(self, *brokers: int) -> None:
        """They are there again."""
        for broker in brokers or self.brokers:
            self._check(self._kafka.rd_kafka_mock_broker_set_up(self._cluster, broker))

    def round_trip(self, ms: int) -> None:
        """Every broker answers so late."""
        for broker in self.brokers:
            self._check(self._kafka.rd_kafka_mock_broker_set_rtt(self._cluster, broker, ms))

    def close(self) -> None:
        """End the brokers."""
        if self._cluster:
            self._kafka.rd_kafka_mock_cluster_destroy(self._cluster)
            self._kafka.rd_kafka_destroy(self._handle)
            self._cluster = None

    @staticmethod
    def _check(code: int) -> None:
        if code:
            msg = f"librdkafka's mock cluster refuses: error {code}"
            raise ValueError(msg)


@contextmanager
def mock_cluster(brokers: int = 3) -> Iterator[MockCluster]:
    """One for a test; without it the test is skipped, or fails in CI."""
    try:
        cluster = MockCluster(brokers)
    except MockAbsent as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"required in CI: {exc}")
        pytest.skip(str(exc))
    try:
        yield cluster
    finally:
        cluster.close()
