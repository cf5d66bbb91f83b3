"""What is sent to Kafka: messages in, what the broker has said of each out.

`kafka.py` has the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, errors

from aevents.errors import DeliveryError, Refused, Unavailable
from aevents.settings import conf
from aevents.transports.broker import Outgoing, text_of
from aevents.transports.kafka_batches import BATCH_BYTES, Batch, batches_of, without_a_leader
from aevents.transports.kafka_source import cut, watch

_LARGEST_BYTES = 2**30  # what is too large is the broker's to say
_CUT_EVERY_S = 0.2
_OF_THE_ATTEMPT = 0.9  # of its time: then what is confirmed is told, though not all is
Settings = dict[str, Any]


class Publisher:
    """The producer of one broker: made when it is needed, and thrown away once anything of it has failed.

    A message that failed leaves a gap in the numbers of an idempotent producer, after which the broker takes
    nothing more of that partition from it; and one whose sending was given up would still be sent, later. Nor
    does one outlive a connection: a broker that comes back as it was some time ago may give its number to
    another, and then takes what is new for a copy of what it has, and says that all is well.
    """

    def __init__(
        self,
        find_settings: Callable[[], Awaitable[Settings]],
        make_topics: Callable[[Settings, Sequence[str]], Awaitable[None]],
    ) -> None:
        self._find_settings = find_settings
        self._make_topics = make_topics
        self._producer: Any = None
        self._settings: Settings = {}
        self._starting = asyncio.Lock()
        self._in_turn: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._endings: set[asyncio.Task[None]] = set()

    async def publish(self, messages: Sequence[Outgoing]) -> list[DeliveryError | None]:
        """Send all of them, and return how each fared once the broker has said so of all."""
        ends_at = time.monotonic() + _OF_THE_ATTEMPT * conf().LIMITS.ATTEMPT_S
        producer, is_well = None, True
        try:
            async with contextlib.AsyncExitStack() as stack:
                topics = {message.topic for message in messages}
                for topic in sorted(topics):  # or what comes later might overtake, with the same key
                    await stack.enter_async_context(self._in_turn[topic])
                if time.monotonic() >= ends_at:
                    raise TimeoutError("it was not its turn in time")
                producer = await self._started()
                await self._know_topics(producer, topics)
                found = await without_a_leader(producer.client, messages)
                batches = batches_of(producer, messages, found)
                futures = await _handed_over(producer, batches)
            for batch, result in zip(batches, await _results(futures, ends_at), strict=True):
                is_well = is_well and result is None
                for place in batch.places:
                    found[place] = _fared(messages[place], result)
            return found
        except BaseException:
            is_well = False
            raise
        finally:
            if producer is not None and not is_well:
                self._throw_away(producer)

    async def close(self) -> None:
        """Close the producer, and wait for the ends of earlier ones."""
        if self._producer is not None:
            self._throw_away(self._producer)
        if self._endings:
            await asyncio.wait(self._endings)

    async def _started(self) -> Any:
        async with self._starting:
            if self._producer is None:
                self._producer = await self._new()
            return self._producer

    async def _new(self) -> Any:
        self._settings = await self._find_settings()
        producer = AIOKafkaProducer(
            **self._settings,
            acks="all",
            enable_idempotence=True,
            max_batch_size=BATCH_BYTES,
            max_request_size=_LARGEST_BYTES,
            request_timeout_ms=int(1000 * conf().LIMITS.ATTEMPT_S),
        )
        watch(producer.client, functools.partial(self._throw_away, producer))
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def _know_topics(self, producer: Any, names: set[str]) -> None:
        # With no topics of its own the client asks for all, and so makes none: see `make_topics`.
        def unknown() -> list[str]:
            return [name for name in names if producer.client.cluster.partitions_for_topic(name) is None]

        if not unknown():
            return
        await producer.client.force_metadata_update()
        if missing := unknown():
            await self._make_topics(self._settings, missing)
        while unknown():
            await producer.client.force_metadata_update()
            await asyncio.sleep(0.02)

    def _throw_away(self, producer: Any, reason: str = "another message has failed") -> None:
        if self._producer is not producer:
            return
        self._producer = None
        producer._sender.sender_task.cancel()  # before anything of it is sent once more
        ending = asyncio.ensure_future(_ended(producer, reason))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


async def _handed_over(producer: Any, batches: Sequence[Batch]) -> list[asyncio.Future[Any]]:
    futures: list[asyncio.Future[Any]] = []
    try:
        for each in batches:
            sending = producer.send_batch(each.builder, each.topic, partition=each.partition)
            futures.append(await sending)
    except BaseException:
        _forget(futures)
        raise
    return futures


async def _results(futures: Sequence[asyncio.Future[Any]], ends_at: float) -> list[BaseException | None]:
    """Return the error of each, None where it is confirmed; of those in time, though others are not."""
    try:
        if futures:
            await asyncio.wait(futures, timeout=max(0.0, ends_at - time.monotonic()))
        return [_result(future) for future in futures]
    finally:
        _forget(futures)


def _result(future: asyncio.Future[Any]) -> BaseException | None:
    if not future.done():
        return TimeoutError("no answer in time")
    return errors.KafkaConnectionError("cancelled") if future.cancelled() else future.exception()


def _forget(futures: Sequence[asyncio.Future[Any]]) -> None:
    for future in futures:
        future.cancel()
        if not future.cancelled():
            future.exception()


def _fared(message: Outgoing, result: Any) -> DeliveryError | None:
    if not isinstance(result, BaseException):
        return None
    is_size = isinstance(result, (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError))
    if is_size and len(message.body) >= BATCH_BYTES:  # so that it was alone
        return Refused(f"the broker takes no message of {len(message.body)} bytes: {text_of(result)}")
    return said(result)


_SLOW = (
    errors.AuthenticationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.InvalidReplicationFactorError,
    errors.InvalidSessionTimeoutError,
    errors.MessageSizeTooLargeError,
    errors.PolicyViolationError,
    errors.SaslAuthenticationFailed,
    errors.TopicAuthorizationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.UnsupportedVersionError,
)


def said(error: BaseException) -> Unavailable:
    """Return what an error of the client means; none of them is for ever."""
    is_late = isinstance(error, (errors.RequestTimedOutError, errors.KafkaTimeoutError, TimeoutError))
    return Unavailable(text_of(error), timed_out=is_late, slowly=isinstance(error, _SLOW))


async def _ended(producer: Any, reason: str) -> None:
    """End a producer with all it still holds. `stop` alone would wait until that is sent, be it for ever."""
    task = producer._sender.sender_task
    while (
        not task.done()
    ):  # it waits for the answers that are due; cancelled twice, it would leave them behind
        cut(producer.client)
        await asyncio.wait([task], timeout=_CUT_EVERY_S)
    accumulator = producer._message_accumulator
    for batches in accumulator._batches.values():
        accumulator._pending_batches.update(batches)  # what is tried again is none of these, and must be
    accumulator.fail_all(errors.KafkaConnectionError(reason))
    for batch in accumulator._pending_batches:
        if batch._drain_waiter.done():
            batch._drain_waiter.exception()  # which nobody waits for
    with contextlib.suppress(Exception):
        await producer.stop()
