"""What a group is brought by Kafka: a consumer in, messages in the order of their partitions out.

`kafka.py` has the rest. The client would reconnect by itself, and go on as if nothing had been lost; here a
broken connection ends the source, so that topics and group are looked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, errors
from aiokafka.conn import CloseReason
from aiokafka.structs import OffsetAndMetadata

from aevents import wire
from aevents.errors import Unavailable
from aevents.event import Message
from aevents.settings import conf
from aevents.transports import topics
from aevents.transports.base import Wanted
from aevents.transports.bindings import as_http
from aevents.transports.kafka_batches import ATTRIBUTES
from aevents.transports.kafka_reader import Reader
from aevents.transports.sources import Held, Source

_POLL_S = 1.0
_LOOK_EVERY_S = 1.0
_HAND_OVER_S = 10.0  # for what is being taken, before its partition goes to another
_REBALANCE_S = 15.0  # which ends without who has not joined by then
_ANSWER_S = 20.0  # for any answer, that to a join included
_COMMIT_S = 10.0
_CLOSE_S = 2.0
_STEADY_METADATA_S = 60.0  # where no new topics are to be found
_FETCH_BYTES, _PARTITION_BYTES = 8 * 2**20, 512 * 1024
_NEVER_MS = 2**31 - 1
_EXPECTED = (None, CloseReason.SHUTDOWN, CloseReason.IDLE_DROP)


async def open_source(
    settings: Mapping[str, Any], prefix: str, wanted: Wanted, options: Mapping[str, Any]
) -> KafkaSource:
    """Return the source of what `wanted` names; its topics must be there."""
    session_s = float(options.get("SESSION_S", 30.0))
    metadata_s = float(options.get("METADATA_S", 5.0))
    consumer = AIOKafkaConsumer(
        **settings,
        group_id=prefix + topics.word_of(wanted.group),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=int(1000 * session_s),
        heartbeat_interval_ms=int(1000 * min(1.0, session_s / 4)),
        rebalance_timeout_ms=int(1000 * _REBALANCE_S),
        request_timeout_ms=int(1000 * _ANSWER_S),
        # The client itself would leave the group where nothing is fetched for so long: while messages are
        # being taken nothing is, and heartbeats say that this replica lives.
        max_poll_interval_ms=_NEVER_MS,
        metadata_max_age_ms=int(1000 * (metadata_s if wanted.patterns else _STEADY_METADATA_S)),
        fetch_max_bytes=_FETCH_BYTES,
        max_partition_fetch_bytes=_PARTITION_BYTES,
    )
    source = KafkaSource(consumer, [topics.topic_of(each, prefix) for each in wanted.types])
    try:
        await consumer.start()
        # Not before: it would wait for the group, which may take longer than there is time. By a pattern also
        # where names are known: a broker that is asked for them may make topics, with a single partition.
        if wanted.types or wanted.patterns:
            consumer.subscribe(pattern=pattern_of(wanted, prefix), listener=source)
    except BaseException:
        await source.close()
        raise
    return source


def pattern_of(wanted: Wanted, prefix: str) -> str:
    """Return a regular expression for the names of the topics that are wanted, and of no others."""
    names = [re.escape(topics.word_of(each)) for each in wanted.types]
    names += [_ANY.join(map(_literal, each.split("*"))) for each in wanted.patterns]
    return f"{re.escape(prefix)}(?:{'|'.join(names)})\\Z"


# A name is written byte by byte, but a `_` in one of two ways, by what follows it: see `topics`.
_BARE = "_(?![0-9A-F]{2})"
_ANY = f"(?:[A-Za-z0-9-]|_[0-9A-F]{{2}}|{_BARE})*"


def _literal(text: str) -> str:
    return f"(?:_5F|{_BARE})".join(re.escape(topics.word_of(part)) for part in text.split("_"))


class _Partition:
    """What was given out of one partition since it was assigned, and how far all of it is owned."""

    __slots__ = ("_given", "_owned", "again", "place")

    def __init__(self, place: Any, again: int) -> None:
        self.place = place
        self.again = again
        self._given: deque[int] = deque()
        self._owned: set[int] = set()

    @property
    def is_settled(self) -> bool:
        return not self._given

    def give(self, record: Any) -> Held:
        # Kafka counts no deliveries. What the last owner had in hand when it ended is at the beginning.
        self.again -= 1
        self._given.append(record.offset)
        return Held(_message(record), (self, record.offset), is_again=self.again >= 0)

    def own(self, offset: int) -> int | None:
        """Note that a message is owned; return the offset up to which now all are, if it is another."""
        self._owned.add(offset)
        reached = None
        while self._given and self._given[0] in self._owned:
            reached = self._given.popleft() + 1
            self._owned.discard(reached - 1)
        return reached


class KafkaSource(ConsumerRebalanceListener, Source):  # type: ignore[misc]
    """The partitions of a group that are this replica's: what is out of one is owned before it goes."""

    def __init__(self, consumer: Any, names: Sequence[str]) -> None:
        self._consumer = consumer
        self._names = names
        self._seen: set[str] = set()
        self._reader = Reader(consumer)
        self._objection: Exception | None = None
        self._looks_at = 0.0
        self._partitions: dict[Any, _Partition] = {}
        self._settled = asyncio.Event()
        self._settled.set()
        self._is_closing = False
        self._lost = asyncio.Event()
        self._loss = ""
        watch(consumer._client, self._lose)

    async def fetch(self, at_most: int) -> Sequence[Held]:
        if self._objection is not None:
            raise self._objection
        held: list[Held] = []
        ends = time.monotonic() + _POLL_S
        with contextlib.suppress(TimeoutError):
            # The client by itself waits for as long as the group is being shared anew.
            async with asyncio.timeout(2 * _POLL_S):
                while True:
                    self._require_life()
                    await self._read_into(held, at_most)
                    wait_s = ends - time.monotonic()
                    if held or wait_s <= 0:
                        break
                    await self._reader.wait(wait_s)
        return held

    async def _read_into(self, held: list[Held], at_most: int) -> None:
        try:
            async for place, record in self._reader.read(at_most):
                self._settled.clear()
                held.append(self._partition(place).give(record))
        except Exception as error:
            if not held:
                raise
            self._objection = error  # to one partition; what the others have given comes first

    async def acknowledge(self, held: Sequence[Held]) -> None:
        reached: dict[Any, Any] = {}
        for each in held:
            partition: _Partition
            partition, offset = each.handle
            upto = partition.own(offset)
            if upto is not None and self._partitions.get(partition.place) is partition:
                reached[partition.place] = OffsetAndMetadata(upto, "")
        try:
            if reached:
                await self._commit(reached)
        except errors.CommitFailedError:
            pass  # they are another's meanwhile, who is brought them again
        finally:
            self._look_whether_settled()

    async def _commit(self, reached: dict[Any, Any]) -> None:
        # Not `consumer.commit`, which refuses as soon as a new topic has been found. It tries for ever.
        trying = asyncio.ensure_future(self._consumer._coordinator.commit_offsets(None, reached))
        losing = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((trying, losing), timeout=_COMMIT_S, return_when=asyncio.FIRST_COMPLETED)
            if not trying.done():
                raise Unavailable(self._loss or "what was taken could not be committed in time")
            trying.result()
        finally:
            trying.cancel()
            losing.cancel()

    async def close(self) -> None:
        self._is_closing = True
        self._settled.set()
        stopping = asyncio.ensure_future(self._consumer.stop())
        if not (await asyncio.wait([stopping], timeout=_CLOSE_S))[0]:
            cut(self._consumer._client)
            await asyncio.wait([stopping], timeout=_CLOSE_S)
        if stopping.done() and not stopping.cancelled():
            stopping.exception()
        await self._consumer._client.close()  # `stop` ends before it, where a fetch has just failed

    # Told by the client

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Let what was given out be owned before others are given these; nothing is fetched meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HAND_OVER_S):
                await self._settled.wait()
        self._partitions = {}
        self._settled.set()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """What is there is seen when it is fetched."""

    def _lose(self, reason: str) -> None:
        if not self._is_closing:
            self._loss = reason
            self._lost.set()

    def _require_life(self) -> None:
        if self._loss:
            raise Unavailable(self._loss)
        now = time.monotonic()
        if now < self._looks_at:
            return
        self._looks_at = now + _LOOK_EVERY_S
        for name in self._names:
            if self._consumer.partitions_for_topic(name) is not None:
                self._seen.add(name)
            elif name in self._seen:
                raise Unavailable(f"the topic {name} is gone")
        if len(self._seen) < len(self._names):
            # Not every broker has heard of a new topic at once.
            self._consumer._client.force_metadata_update()

    def _partition(self, place: Any) -> _Partition:
        found = self._partitions.get(place)
        if found is None:
            found = self._partitions[place] = _Partition(place, 2 * int(conf().LIMITS.BATCH))
        return found

    def _look_whether_settled(self) -> None:
        if all(each.is_settled for each in self._partitions.values()):
            self._settled.set()


def watch(client: Any, lose: Callable[[str], None]) -> None:
    """Have `lose` told why, as soon as a connection of a client breaks."""
    go_on = client._on_connection_closed

    def noticed(connection: Any, reason: Any) -> None:
        if reason not in _EXPECTED:
            lose(f"the connection to {connection.host}:{connection.port} is lost")
        go_on(connection, reason)

    client._on_connection_closed = noticed


def cut(client: Any) -> None:
    """Break a client's connections, so that whatever waits for an answer fails now."""
    for connection in list(client._conns.values()):
        connection.close()


def _message(record: Any) -> Message:
    named = [(name, (value or b"").decode("utf-8", "replace")) for name, value in record.headers]
    headers = as_http(named, ATTRIBUTES)
    if record.key and "ce-partitionkey" not in headers:
        with contextlib.suppress(UnicodeDecodeError):  # a key may be anything
            headers["ce-partitionkey"] = wire.quote(record.key.decode())
    return Message(headers, record.value or b"")
