"""What a consumer of Kafka's has fetched, partition by partition: what cannot be read holds up only its own.

Asked for all partitions at once, the client forgets what it has taken from the others where it cannot read
one: a codec that is not installed, a broken record.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from aiokafka import errors

from aevents.transports.broker import text_of

_UNREADABLE_S = 30.0  # before a partition with what cannot be read is tried again
_SUSPECT = 10_000  # records after one that could not be read
_logger = logging.getLogger("aevents")


class Reader:
    """The records that a consumer has, each partition's in order."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._turn = 0
        self._unreadable: dict[Any, float] = {}  # until when nothing of a partition is asked for
        self._one_by_one: dict[Any, int] = {}  # so many more records, to find the one that cannot be read

    async def read(self, at_most: int) -> AsyncIterator[tuple[Any, Any]]:
        """Yield partitions and records that are here; each time another partition comes first."""
        self._consumer._coordinator.check_errors()  # which nobody is told of while no partition is ours
        places = sorted(self._consumer.assignment())
        self._turn += 1
        first = self._turn % max(1, len(places))
        for place in places[first:] + places[:first]:
            if at_most <= 0:
                return
            for record in await self._of(place, at_most):
                at_most -= 1
                yield place, record

    async def wait(self, wait_s: float) -> None:
        """Return when there may be more, or after so long. Raises what the broker objects to."""
        fetcher, places = self._consumer._fetcher, self._consumer.assignment()
        if any(place in places and place not in self._unreadable for place in fetcher._records):
            await asyncio.sleep(0)  # it has come meanwhile
            return
        waiter = fetcher._create_fetch_waiter()
        try:
            await asyncio.wait([waiter], timeout=wait_s)
            if waiter.done():
                waiter.result()
        finally:
            waiter.cancel()  # or the client would keep it, and what is told to it later

    async def _of(self, place: Any, at_most: int) -> list[Any]:
        if time.monotonic() < self._unreadable.get(place, 0.0):
            return []
        self._unreadable.pop(place, None)
        left = self._one_by_one.get(place, 0)
        try:
            found = await self._consumer.getmany(place, timeout_ms=0, max_records=1 if left else at_most)
        except Exception as error:
            if not _is_about_a_record(error):
                raise
            self._note(place, error, is_found=left > 0)
            return []
        records: list[Any] = found.get(place, [])
        if left and records:
            self._one_by_one[place] = left - 1
        return records

    def _note(self, place: Any, error: Exception, *, is_found: bool) -> None:
        self._one_by_one[place] = _SUSPECT  # what was before it in the same piece was forgotten with it
        if not is_found:
            return
        self._unreadable[place] = time.monotonic() + _UNREADABLE_S
        _logger.error(
            "Partition %d of %s is held back, nothing of it is lost: what it has next cannot be read: %s",
            place.partition,
            place.topic,
            text_of(error),
        )


def _is_about_a_record(error: Exception) -> bool:
    """Tell whether the client could not read what a partition has, be it what it may."""
    if isinstance(error, (errors.UnsupportedCodecError, errors.CorruptRecordException)):
        return True
    return not isinstance(error, (errors.KafkaError, errors.ConsumerStoppedError))
