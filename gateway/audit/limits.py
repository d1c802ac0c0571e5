"""Limits: the largest record and the largest batch that go to the topic.

topic, refusals -> **limits** -> forwarder. The topic's own limit where it can be seen. Where it cannot (a user without
DescribeConfigs), and where brokers take less than they say, their refusals tell: nothing is sent again as it was
refused, or it would be for ever.
"""

from __future__ import annotations

RECORD_SLACK_BYTES = 4096
"""Headers of a record and of a batch."""
FLOOR_BYTES = 1024
"""A gap fits: lower than this no refusal brings a limit."""


class Limits:
    """What a topic takes.

    Args:
        batch_bytes: as configured.

    Attributes:
        batch_bytes: of a batch before compression, unless it is one record.
        record_bytes: of a record's value.
    """

    def __init__(self, batch_bytes: int) -> None:
        self._configured_bytes = batch_bytes
        self._found_bytes = -1
        self.batch_bytes = self.record_bytes = 0

    def found(self, max_message_bytes: int) -> None:
        """The topic's limit as the brokers say, or as it is thought to be; another one ends what was learnt."""
        if max_message_bytes == self._found_bytes:
            return
        self._found_bytes = max_message_bytes
        self.record_bytes = max_message_bytes - min(RECORD_SLACK_BYTES, max_message_bytes // 2)
        self.batch_bytes = min(self._configured_bytes, self.record_bytes)

    def refused(self, count: int, value_bytes: int) -> None:
        """A batch of so many records was too large.

        Args:
            value_bytes: of the first one's value.
        """
        if count > 1:
            self.batch_bytes = max(self.batch_bytes // 2, FLOOR_BYTES)
        else:
            self.record_bytes = max(min(self.record_bytes, value_bytes - 1), FLOOR_BYTES)
